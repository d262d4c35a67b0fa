import json
import re
import subprocess
import sys

import pytest

from nfnet.cost import count
from tests import commands
from tests.repository import ROOT
from tests.train.small_network import TINY

CONFIG = ROOT / "tests" / "train" / "small_network.py"
IMAGES = 64


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "profiling.trace", f"--config={CONFIG}", *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.usefixtures("small_networks")
def test_traces_real_steps(tmp_path):
  result = run(
    f"--config.data.batch_size={IMAGES}",
    # Fewer epochs than a data set of a million images would need for such a warm-up.
    "--config.schedule.train_epochs=0.25",
    "--config.schedule.train_steps=none",
    "--config.optimizer.warmup_steps=5000",
    "--steps=2",
    f"--folder={tmp_path / 'profile'}",
    f"--json={tmp_path / 'trace.json'}",
  )
  assert result.returncode == 0, result.stderr
  assert "Measured on 8 x cpu" in result.stdout
  assert f"xprof --logdir={tmp_path / 'profile'}" in result.stdout
  assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))
  figures = json.loads((tmp_path / "trace.json").read_text())
  assert figures["what"] == "measured"
  flops = count(TINY.name, num_classes=10, pixels=16).training_flops
  assert figures["images_per_second"] == pytest.approx(IMAGES / figures["step_seconds"])
  assert figures["flops_per_second"] == pytest.approx(flops * IMAGES / figures["step_seconds"])
  assert figures["hours_per_million_images"] == pytest.approx(
    8 * 1e6 * figures["step_seconds"] / IMAGES / 3600
  )
  assert 0 < figures["busy_share"] <= 1
  rows = figures["rows"]
  parts = {(row["part"], row["direction"]) for row in rows}
  for part in ("stem", "stage 1", "stage 2", "head"):
    assert {(part, "forward"), (part, "backward")} <= parts
  assert ("optimizer", "") in parts
  assert {"convolution", "elementwise or reduction", "collective"} <= {row["kind"] for row in rows}
  # The rows are for one step and one device, whose threads seldom compute at once.
  busy_seconds = sum(row["seconds"] for row in rows)
  assert 0 < busy_seconds < 4 * figures["traced_step_seconds"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.model.variant=F9"], "F9"),
    (["--config.data.batch_size=7", "--config.optimizer.gradient_accumulation=2"], "batch_size=7"),
    # A step is measured as it is configured.
    (["--config.parallelism.parameter_shards=3"], "parameter_shards=3 does not divide"),
    (["stray"], "stray"),
  ],
)
def test_what_cannot_be_measured_is_one_line(arguments, message):
  result = commands.run("profiling.trace", f"--config={CONFIG}", *arguments)
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr
