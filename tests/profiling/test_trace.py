import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import train.configs
from nfnet.cost import count
from profiling.compiler_text.chips import CHIPS
from profiling.trace import Measurement

CONFIG = pathlib.Path(train.configs.__file__).parent / "demo_pretrain.py"


def measurement(device_kind, devices, cores_per_device):
  return Measurement(
    platform="tpu",
    device_kind=device_kind,
    devices=devices,
    cores_per_device=cores_per_device,
    images_per_step=128,
    training_flops_per_image=10**11,
    steps=1,
    step_seconds=0.1,
    traced_step_seconds=0.1,
    busy_share=1.0,
    rows=(),
    versions={},
  )


@pytest.mark.parametrize(("devices", "cores_per_device"), [(4, 2), (8, 1)])
def test_core_hours_and_mfu_do_not_depend_on_how_a_chip_is_split(devices, cores_per_device):
  measured = measurement("TPU v4", devices, cores_per_device)
  assert measured.chips == 4
  # 1280 images/s of 1e11 FLOP on four chips; a million images take 781 s of eight cores.
  assert measured.mfu == pytest.approx(1280 * 1e11 / (4 * CHIPS["v4"].peak_flops))
  assert measured.hours_per_million_images == pytest.approx(8 * 1e6 / 1280 / 3600)


def test_other_devices_have_hours_and_no_mfu():
  measured = measurement("NVIDIA H100", 2, 1)
  assert measured.chips is None
  assert measured.mfu is None
  assert measured.hours_per_million_images == pytest.approx(2 * 1e6 / 1280 / 3600)


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "profiling.trace", f"--config={CONFIG}", *arguments],
    env={
      **os.environ,
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0",
    },
    capture_output=True,
    text=True,
    check=False,
  )


IMAGES = 64
"""Eight a device: with one each, copying weights can take longer than convolutions."""


def test_traces_real_steps(tmp_path):
  result = run(
    f"--config.data.batch_size={IMAGES}",
    "--steps=3",
    f"--folder={tmp_path / 'profile'}",
    f"--json={tmp_path / 'trace.json'}",
  )
  assert result.returncode == 0, result.stderr
  assert "Measured on 8 x cpu" in result.stdout
  assert f"tensorboard --logdir={tmp_path / 'profile'}" in result.stdout
  assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))
  figures = json.loads((tmp_path / "trace.json").read_text())
  assert figures["what"] == "measured"
  flops = count("P0", num_classes=10, pixels=32).training_flops
  assert figures["images_per_second"] == pytest.approx(IMAGES / figures["step_seconds"])
  assert figures["flops_per_second"] == pytest.approx(flops * IMAGES / figures["step_seconds"])
  assert figures["hours_per_million_images"] == pytest.approx(
    8 * 1e6 * figures["step_seconds"] / IMAGES / 3600
  )
  assert 0 < figures["busy_share"] <= 1
  rows = figures["rows"]
  parts = {(row["part"], row["direction"]) for row in rows}
  for part in ("stem", "stage_1", "stage_2", "stage_3", "stage_4", "head"):
    assert {(part, "forward"), (part, "backward")} <= parts
  assert ("optimizer", "") in parts
  # Convolutions are what such a network computes.
  by_kind = {
    kind: sum(r["seconds"] for r in rows if r["kind"] == kind)
    for kind in ("convolution", "copy or layout")
  }
  assert by_kind["convolution"] > by_kind["copy or layout"]
  # Of one step on one device, whose threads seldom compute at once.
  busy_seconds = sum(row["seconds"] for row in rows)
  assert 0 < busy_seconds < 4 * figures["traced_step_seconds"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.model.variant=F9"], "F9"),
    (["--config.data.batch_size=7", "--config.optimizer.gradient_accumulation=2"], "batch_size=7"),
    (["stray"], "stray"),
  ],
)
def test_what_cannot_be_measured_is_one_line(arguments, message):
  result = run(*arguments)
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr
