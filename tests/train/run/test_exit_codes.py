import pathlib
import re

import pytest

from nfnet.command_line import report_error
from nfnet.errors import InUseError, UserError
from tests.repository import ROOT
from train.run import exit_codes
from train.run.termination import Terminated


def test_codes_of_the_documentation_are_those_of_the_program():
  """Codes with a "no" in the table of docs/reliability.md are the final ones."""
  text = (pathlib.Path(ROOT) / "docs/reliability.md").read_text()
  rows = re.findall(r"^\| (\d+) \|.*\| *(.*?) *\|$", text, re.MULTILINE)
  codes = {value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
  assert {int(code) for code, _ in rows} == codes
  final = {int(code) for code, again in rows if again.startswith("no")}
  assert final == set(exit_codes.FINAL_EXIT_CODES)


def test_every_code_means_one_thing():
  codes = [value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")]
  assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (UserError("any"), exit_codes.EXIT_USER_ERROR),
    (InUseError("any"), exit_codes.EXIT_IN_USE),
    (ValueError("any"), exit_codes.EXIT_UNEXPECTED_ERROR),
    (KeyboardInterrupt(), exit_codes.EXIT_INTERRUPTED),
  ],
)
def test_commands_exit_with_these_codes(error, code):
  assert report_error(error) == code


def test_a_terminated_run_exits_with_its_code():
  assert Terminated().code == exit_codes.EXIT_TERMINATED


@pytest.mark.parametrize(("return_code", "code"), [(0, 0), (2, 2), (-9, 137), (-6, 134)])
def test_signals_count_as_in_a_shell(return_code, code):
  assert exit_codes.shell_exit_code(return_code) == code
