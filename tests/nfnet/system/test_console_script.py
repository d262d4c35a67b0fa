import os
import re
import subprocess
import sys

import pytest

import nfnet
from nfnet.system import console_script
from nfnet.system.console_script import as_started, main
from tests import commands
from tests.repository import ROOT
from tests.test_command_lines import COMMANDS

LISTING = """
import sys
from nfnet.system.console_script import main
sys.argv = ["nfnets", "--help"]
main()
print(*sorted({"absl", "jax", "numpy", "importlib.metadata"} & sys.modules.keys()), file=sys.stderr)
"""


def test_every_command_has_a_name_of_its_own():
  found = console_script.commands()
  assert sorted(command.module for command in found) == COMMANDS
  assert len({command.name for command in found}) == len(found)


def test_help_has_a_line_for_each_command_and_imports_little():
  result = subprocess.run(
    [sys.executable, "-c", LISTING], cwd=ROOT, capture_output=True, text=True, check=True
  )
  lines = dict(re.findall(r"^  (\w+) +(\w.*\.)$", result.stdout, re.MULTILINE))
  assert lines.keys() == {command.name for command in console_script.commands()}
  assert lines["pretrain"] == "Trains a network from random parameters."
  assert result.stderr == "\n"


def test_a_command_says_how_it_is_started():
  result = commands.run("tests.console", "help", "prepare-data")
  assert result.returncode == 0
  assert "nfnets prepare_data --source=SOURCE" in result.stdout
  assert "python -m" not in result.stdout
  assert "--source: " in result.stdout
  result = commands.run("train.prepare_data", "-h")
  assert result.returncode == 0
  assert "python -m train.prepare_data --source=SOURCE" in result.stdout


@pytest.mark.parametrize("name", ["describe", "nfnet.describe"])
def test_errors_are_those_of_the_command(name):
  result = commands.run("tests.console", name, "--variant=F99")
  assert result.returncode == 2
  assert result.stderr.startswith("error: ")
  assert "F99" in result.stderr
  assert result.stderr.count("\n") == 1


def test_messages_name_the_program_that_the_user_has_started(monkeypatch):
  text = "run `python -m profiling.step --json=OUT` or python -m pytest"
  assert as_started(text) == text
  monkeypatch.setattr(console_script, "_started", ["profiling.step"])
  assert as_started(text) == "run `nfnets step --json=OUT` or python -m pytest"


def test_the_program_tells_its_version():
  assert commands.run("tests.console", "version").stdout == f"{nfnet.__version__}\n"


@pytest.mark.parametrize(("name", "near"), [("pretrian", "pretrain"), ("x\n" * 5000, "")])
def test_a_wrong_name_is_one_line_with_the_nearest_names(monkeypatch, capsys, name, near):
  monkeypatch.setitem(os.environ, "PYTHONSAFEPATH", "")
  monkeypatch.setattr(sys, "argv", ["nfnets", name])
  with pytest.raises(SystemExit, match="2"):
    main()
  # Python processes that a command starts do not look into the current folder.
  assert os.environ["PYTHONSAFEPATH"] == "1"
  error = capsys.readouterr().err
  assert f"nearest: {near}" in error
  assert error.count("\n") == 1
  assert len(error) < 300
