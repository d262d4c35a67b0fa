import dataclasses
import json
import os
import subprocess
import sys

import pytest

from nfnet.cost import count
from profiling.compile.compilation import Compilation
from profiling.compile.request import StepRequest
from profiling.estimate.step_time import Row, StepTime
from profiling.step import StepReport, as_json, as_text

REQUEST = StepRequest(
  variant="F3", topology="v4:2x2x1", batch_per_chip=32, pixels=224, num_classes=1000
)


@pytest.fixture
def result():
  return StepReport(
    request=REQUEST,
    compilation=Compilation(
      hlo_text="HloModule",
      kernels={},
      lower_seconds=2.0,
      compile_seconds=70.0,
      peak_memory_bytes=5 * 10**9,
      hbm_bytes=3 * 2**30,
      versions={"jax": "1"},
    ),
    time=StepTime(
      rows=(
        Row(part="stem", direction="forward", kind="convolution", seconds=0.02),
        Row(part="stem", direction="backward", kind="convolution", seconds=0.03),
        Row(part="optimizer", direction="", kind="copy or layout", seconds=0.03),
      ),
      collective_bytes=7,
    ),
  )


def test_speed_utilization_and_core_hours(result):
  assert result.time.seconds == pytest.approx(0.08)
  assert result.images_per_second_per_chip == pytest.approx(400)
  macs = count("F3", num_classes=1000, pixels=224).macs
  assert result.mfu == pytest.approx(6 * macs * 400 / 275e12)
  # A chip has two cores: a million images take 2500 s of one chip.
  assert result.core_hours_per_million_images == pytest.approx(2 * 2500 / 3600)


@pytest.mark.parametrize(("hbm_bytes", "fits"), [(32 * 2**30, True), (32 * 2**30 + 1, False)])
def test_says_whether_it_fits(result, hbm_bytes, fits):
  compilation = dataclasses.replace(result.compilation, hbm_bytes=hbm_bytes)
  changed = dataclasses.replace(result, compilation=compilation)
  assert changed.fits == fits
  assert changed.hbm_margin_bytes == 32 * 2**30 - hbm_bytes
  assert ("DOES NOT FIT" in as_text(changed)) != fits
  assert ("of 32, margin 0.00" in as_text(changed)) == fits


def test_of_a_v3_core_half_of_the_chips_memory_counts(result):
  request = dataclasses.replace(REQUEST, topology="v3:2x2")
  compilation = dataclasses.replace(result.compilation, hbm_bytes=17 * 2**30)
  changed = dataclasses.replace(result, request=request, compilation=compilation)
  assert not changed.fits
  assert "HBM a core" in as_text(changed)


def test_the_text_says_what_is_estimated_and_what_measured(result):
  text = as_text(result)
  estimated, stated, measured = (
    text.index(words)
    for words in ("Estimated from the compiler's schedule, not measured", "Stated", "Measured:")
  )
  assert estimated < text.index("images/s/chip") < stated < text.index("HBM") < measured
  assert measured < text.index("compiling  ")
  assert "v4:2x2x1, megacore" in text
  words = " ".join(text.split())
  assert "stem forward 20.00 25.0%" in words
  assert "convolution 50.00 62.5%" in words
  assert "Rules: " in text


def test_the_json_has_the_same_figures_in_base_units(result):
  fields = json.loads(json.dumps(as_json(result)))
  assert fields["estimated"]["step_seconds"] == pytest.approx(0.08)
  assert fields["estimated"]["images_per_second_per_chip"] == pytest.approx(400)
  assert sum(row["seconds"] for row in fields["estimated"]["rows"]) == pytest.approx(0.08)
  assert fields["request"] == dataclasses.asdict(REQUEST)
  assert fields["compilation"]["versions"] == {"jax": "1"}
  assert "hlo_text" not in fields["compilation"]


def run(*arguments, cache):
  return subprocess.run(
    [sys.executable, "-m", "profiling.step", *arguments],
    env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(("parts", "words"), [(1, ""), (2, " in 2 parts")])
def test_the_command(parts, words, tmp_path):
  small = ("--variant=P0", "--pixels=32", "--batch_per_chip=8", "--num_classes=10")
  result = run(
    *small,
    f"--gradient_accumulation={parts}",
    f"--json={tmp_path / 'out.json'}",
    cache=tmp_path,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith(
    f"NFNet-P0, 10 classes, 32 px, 8 images a chip{words} on v4:2x2x1"
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
  ],
)
def test_user_errors_are_one_line(arguments, words, tmp_path):
  result = run(*arguments, cache=tmp_path)
  assert result.returncode == 2
  assert len(result.stderr.strip().splitlines()) == 1
  assert words in result.stderr
