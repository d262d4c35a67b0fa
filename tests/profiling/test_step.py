"""The command: which step its flags ask for, and what it prints."""

import json
import os
import subprocess
import sys

import pytest

from nfnet.cost import count
from train.config.config_file import from_json, load_experiment

DEMO = "train/configs/demo_pretrain.py"


def run(*arguments, cache):
  return subprocess.run(
    [sys.executable, "-m", "profiling.step", *arguments],
    env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_step_by_flags(tmp_path):
  small = ("--variant=P0", "--pixels=32", "--batch_per_chip=8", "--num_classes=10")
  result = run(
    *small, "--gradient_accumulation=2", f"--json={tmp_path / 'out.json'}", cache=tmp_path
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith(
    "NFNet-P0, 10 classes, 32 px, 8 images a chip in 2 parts on v4:2x2x1"
  )
  fields = json.loads((tmp_path / "out.json").read_text())
  assert fields["fits"]
  rows = fields["estimated"]["rows"]
  assert {row["part"] for row in rows} == {
    *("stem", "stage_1", "stage_2", "stage_3", "stage_4", "head"),
    *("optimizer", "collectives", "other"),
  }
  # Float32 gradients of every parameter, and three sums over examples: once, not once a part.
  parameters = count("P0", num_classes=10, pixels=32).parameters
  assert fields["estimated"]["collective_bytes"] == 4 * (parameters + 3)


def test_a_step_by_configuration_is_the_configured_one(tmp_path):
  overrides = ("--config.model.dropout_rate=0.25", "--config.mixing.cutmix=true")
  result = run(f"--config={DEMO}", *overrides, f"--json={tmp_path / 'out.json'}", cache=tmp_path)
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith("NFNet-P0, 10 classes, 32 px, 16 images a chip on v4:2x2x1")
  request = json.loads((tmp_path / "out.json").read_text())["request"]
  assert from_json(request["experiment"]) == load_experiment(DEMO, overrides)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--variant=G0"], "nearest: P0"),
    (["--variant=P0", "--topology=v4:2x2"], "has 3 sides"),
    (["--variant=P0", "--batch_per_chip=0"], "batch_per_chip"),
    (["--variant=P0", "surplus"], "'surplus'"),
    (["--variant=P0", "--kernels=fast"], "kernels"),
    (["--variant=P0", "--gradient_accumulation=0"], "gradient_accumulation"),
    (["--variant=P0", "--gradient_accumulation=64"], "64 accumulated parts"),
    (["--variant=P0", "--sharpness_group_images=5"], "sharpness.group_images=5 does not divide"),
    ([], "neither --config nor --variant is given"),
    (
      [f"--config={DEMO}", "--batch_per_chip=8"],
      f"--batch_per_chip cannot be combined with --config={DEMO}, which sets it; "
      "write --config.data.batch_size=VALUE",
    ),
    ([f"--config={DEMO}", "--config.optimizer.warmup=5"], "nearest: --config.optimizer.warmup_"),
    (["--variant=P0", "--config.loss.kind=hinge"], "must be one of softmax, sigmoid"),
  ],
)
def test_user_errors_are_one_line(arguments, words, tmp_path):
  result = run(*arguments, cache=tmp_path)
  assert result.returncode == 2
  assert len(result.stderr.strip().splitlines()) == 1
  assert words in result.stderr
