import json

import pytest

from profiling.calibrate import (
  Comparison,
  as_json,
  as_text,
  compare_v3,
  compare_v4,
  requests_v3,
)
from profiling.compile.request import StepRequest, plain_experiment
from profiling.estimate import published
from profiling.estimate.error_bar import Spread, error_bar_text, error_bars, spread
from profiling.estimate.paper_runs import Estimates
from profiling.estimate.stored import read_stored
from tests.profiling.reports import compute_row, report


def test_steps_are_those_that_paper_b_timed():
  requests = requests_v3()
  experiments = [request.experiment for request in requests]
  assert [(one.model.variant, one.data.train_pixels) for one in experiments] == [
    ("F0", 192), ("F1", 224), ("F2", 256), ("F3", 320), ("F4", 384), ("F5", 416)
  ]  # fmt: skip
  # 32 cores, each of which is a device, with 32 images each.
  assert {one.topology for one in requests} == {"v3:4x4"}
  assert {one.batch_per_chip for one in requests} == {64}
  assert {(one.model.kernels, one.model.block_execution) for one in experiments} == {
    ("reference", "unrolled")
  }


def test_ratios_are_published_over_estimated():
  rows = compare_v3([report(request, compute_row(0.1)) for request in requests_v3()])
  assert rows[0].ratio == pytest.approx(0.0733 / 0.1)
  assert rows[5].ratio == pytest.approx(1.3985 / 0.1)
  experiment = plain_experiment("F0", batch_size=128, pixels=192, num_classes=1000)
  step = report(StepRequest(experiment=experiment, topology="v4:2x2x1"), compute_row(0.032))
  (row,) = compare_v4(Estimates(pretraining={"F0": step}, finetuning=step))
  # A thousand images a second and chip: 4e9 images take 4e6 s of two cores.
  assert row.estimated == pytest.approx(8e6 / 3600)
  assert row.published == pytest.approx(1617, rel=2e-3)


def test_published_speed_is_that_of_the_papers_hours():
  """1373, 833 and 456 images/s/chip were worked out independently from the same hours."""
  for variant, speed in (("F0", 1373), ("F1", 833), ("F3", 456), ("F7+", 166.7)):
    assert published.images_per_second_per_chip(variant) == pytest.approx(speed, rel=3e-3)


def test_the_spread_is_that_of_the_ratios():
  assert spread([0.5, 2.0, 1.0]) == Spread(mean=pytest.approx(1), lowest=0.5, highest=2.0)


def comparison(estimated, fits=True):
  return Comparison(variant="F0", pixels=192, estimated=estimated, published=1.2, fits=fits)


def test_prints_what_it_compares():
  tables = {"v3": [comparison(1.0), comparison(0.8, fits=False)], "v4": [comparison(2.4)]}
  text = as_text(tables)
  assert "1,000.0" in text
  assert "1.34 in the geometric mean, from 1.20 to 1.50 (-11% to +12% of the mean)" in text
  assert "NO" in text
  figures = json.loads(json.dumps(as_json(tables, {"jax": "1"})))
  assert figures["tables"]["v3"]["rows"][1]["ratio"] == pytest.approx(1.5)
  assert figures["tables"]["v4"]["spread"] == {"mean": 0.5, "lowest": 0.5, "highest": 0.5}


def test_the_error_bars_are_those_of_the_stored_comparison():
  calibration = read_stored("calibration.json")
  for name, table in calibration["tables"].items():
    assert len(table["rows"]) == 6
    ratios = [row["published"] / row["estimated"] for row in table["rows"]]
    assert error_bars()[name].lowest == pytest.approx(min(ratios))
    assert error_bars()[name].highest == pytest.approx(max(ratios))
  v3 = error_bars()["v3"]
  assert f"{v3.lowest:.2f} to {v3.highest:.2f} times the estimate on TPU v3" in error_bar_text()
