"""The command; `scaling/test_analysis.py` tests what it shows and writes."""

import json

from tests import commands
from train.published_runs import PAPER_A_NFNETS


def command(*arguments):
  return commands.run("train.scaling_law", *arguments)


def test_command(tmp_path):
  json_path, plots = tmp_path / "laws.json", tmp_path / "plots"
  result = command(
    f"--runs={PAPER_A_NFNETS}",
    *("--resamples=0", "--predict_compute=3e5", "--hold_out_epochs=2"),
    *(f"--json={json_path}", f"--plots={plots}"),
  )
  assert result.returncode == 0, result.stderr
  assert "loss at C = 300,000" in result.stdout
  assert "Held out: 24 runs of at most 2 epochs fitted, the other 12 predicted" in result.stdout
  assert result.stderr == ""
  assert [one["compute"] for one in json.loads(json_path.read_text())["predictions"]] == [3e5]
  for path in plots.iterdir():
    assert f"plot: {path}\n" in result.stdout
  assert len(list(plots.iterdir())) == 4


def test_command_names_what_is_wrong():
  result = command("--runs=nowhere.csv")
  assert result.returncode == 2
  assert result.stderr.startswith("error: --runs=nowhere.csv cannot be read: ")
  assert len(result.stderr.splitlines()) == 1
