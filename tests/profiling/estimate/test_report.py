import dataclasses
import json

import pytest

from nfnet.cost import count
from profiling.compile.request import StepRequest, plain_experiment, replace_fields
from profiling.estimate.report import as_json, as_text
from profiling.estimate.step_time import Row
from tests.profiling.reports import collective_row, report
from train.config.json_conversion import from_json

REQUEST = StepRequest(
  experiment=plain_experiment("F3", batch_size=128, pixels=224, num_classes=1000),
  topology="v4:2x2x1",
)
ROWS = (
  Row(part="stem", direction="forward", kind="convolution", seconds=0.02),
  Row(part="stem", direction="backward", kind="convolution", seconds=0.03),
  Row(part="optimizer", direction="", kind="copy or layout", seconds=0.03),
)


@pytest.fixture
def result():
  return report(REQUEST, *ROWS, collective_bytes=7, hbm_bytes=3 * 2**30)


def test_speed_utilization_and_core_hours(result):
  assert result.time.seconds == pytest.approx(0.08)
  assert result.images_per_second_per_chip == pytest.approx(400)
  macs = count("F3", num_classes=1000, pixels=224).macs
  assert result.mfu == pytest.approx(6 * macs * 400 / 275e12)
  # A chip has two cores: a million images take 2500 s of one chip.
  assert result.core_hours_per_million_images == pytest.approx(2 * 2500 / 3600)


@pytest.mark.parametrize(("hbm_bytes", "fits"), [(32 * 2**30, True), (32 * 2**30 + 1, False)])
def test_says_whether_it_fits(hbm_bytes, fits):
  changed = report(REQUEST, *ROWS, hbm_bytes=hbm_bytes)
  assert changed.fits == fits
  assert changed.hbm_margin_bytes == 32 * 2**30 - hbm_bytes
  assert ("DOES NOT FIT" in as_text(changed)) != fits
  assert ("of 32, margin 0.00" in as_text(changed)) == fits


def test_a_v3_core_has_half_of_the_chips_memory():
  request = dataclasses.replace(REQUEST, topology="v3:2x2")
  changed = report(request, *ROWS, hbm_bytes=17 * 2**30)
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
  assert text.startswith("NFNet-F3, 1,000 classes, 224 px, 32 images a chip on v4:2x2x1, megacore")
  words = " ".join(text.split())
  assert "stem forward 20.00 25.0%" in words
  assert "convolution 50.00 62.5%" in words
  assert "Rules: " in text
  assert "step 80.00 ms (80.00 if nothing overlapped with collectives)" in words


def test_the_time_without_overlap_is_beside_the_time(result):
  overlapping = report(REQUEST, *ROWS, collective_row(0.01), collective_seconds=0.03)
  words = " ".join(as_text(overlapping).split())
  assert "step 90.00 ms (110.00 if nothing overlapped with collectives)" in words
  estimated = json.loads(json.dumps(as_json(overlapping)))["estimated"]
  expected = {
    "step_seconds": 0.09,
    "step_seconds_without_overlap": 0.11,
    "collective_seconds": 0.03,
    "exposed_collective_seconds": 0.01,
  }
  assert {name: estimated[name] for name in expected} == pytest.approx(expected)
  assert overlapping.images_per_second_per_chip == pytest.approx(32 / 0.09)


def test_the_first_line_has_what_is_not_plain():
  experiment = replace_fields(
    REQUEST.experiment,
    model={"rematerialize": True},
    mixing={"cutmix": True},
    optimizer={"gradient_accumulation": 2},
    parallelism={"gradient_dtype": "bfloat16"},
    sharpness={"radius": 0.05, "group_images": 16},
  )
  request = StepRequest(experiment=experiment, topology="v4:2x2x1")
  assert as_text(report(request, *ROWS)).splitlines()[0] == (
    "NFNet-F3, 1,000 classes, 224 px, 32 images a chip in 2 parts on v4:2x2x1, megacore, kernels: "
    "reference, blocks rematerialized, gradients travel in bfloat16, SAM, images mixed"
  )


def test_the_json_has_the_same_figures_in_base_units(result):
  fields = json.loads(json.dumps(as_json(result)))
  assert fields["estimated"]["step_seconds"] == pytest.approx(0.08)
  assert fields["estimated"]["images_per_second_per_chip"] == pytest.approx(400)
  assert sum(row["seconds"] for row in fields["estimated"]["rows"]) == pytest.approx(0.08)
  assert fields["compilation"]["versions"] == {"jax": "1"}
  assert "hlo_text" not in fields["compilation"]


def test_the_json_has_the_whole_experiment_and_what_tables_are_read_by(result):
  request = json.loads(json.dumps(as_json(result)))["request"]
  assert from_json(request.pop("experiment")) == REQUEST.experiment
  assert request == {
    "variant": "F3",
    "topology": "v4:2x2x1",
    "batch_per_chip": 32,
    "pixels": 224,
    "num_classes": 1000,
    "kernels": "reference",
    "bottleneck": "paper",
    "block_execution": "scan",
    "rematerialize": False,
    "ema": False,
    "parameter_shards": 1,
    "gradient_accumulation": 1,
    "gradient_dtype": "float32",
    "sharpness_group_images": None,
  }
