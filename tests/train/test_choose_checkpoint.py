"""The command; `scaling/test_checkpoint_choice.py` tests how it chooses."""

import json

from PIL import Image

from tests import commands
from train.published_runs import PAPER_A_NFNETS


def run(*arguments):
  return commands.run("train.choose_checkpoint", *arguments)


def test_the_command(tmp_path):
  result = run(
    f"--finetuned={PAPER_A_NFNETS}",
    f"--candidates={PAPER_A_NFNETS}",
    "--parameters_max=600000000",
    f"--json={tmp_path / 'choice.json'}",
    f"--plot={tmp_path / 'choice.png'}",
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "choice.json").read_text())
  # 36 runs without the six of F7+.
  assert len(found["ranked"]) == 30
  assert "F7+" not in {one["name"] for one in found["ranked"]}
  assert found["law"]["by"] == "loss and size"
  errors = [one["predicted_error_percent"] for one in found["ranked"]]
  assert errors == sorted(errors)
  with Image.open(tmp_path / "choice.png") as picture:
    assert picture.size[0] > 300
  result = run(f"--finetuned={PAPER_A_NFNETS}", "--parameters_max=1000")
  assert result.returncode == 2
  assert result.stderr.strip() == (
    "error: --parameters_max=1000: all networks are larger; give a larger number"
  )
