import dataclasses
import json

import pytest

from profiling.estimate import published
from profiling.estimate.stored import RESULTS
from profiling.released_code import as_json, as_text, request_for, speed_without_collectives
from tests.profiling.reports import collective_row, compute_row, report


def released_report(released, compute_seconds, collective_seconds):
  return report(
    request_for(released),
    compute_row(compute_seconds),
    collective_row(collective_seconds),
    # Some of it overlaps with the rest.
    collective_seconds=3 * collective_seconds,
  )


def test_the_steps_are_those_that_the_released_code_was_estimated_at():
  requests = [request_for(released) for released in published.RELEASED_STEPS_V4]
  experiments = [request.experiment for request in requests]
  assert [(one.model.variant, one.data.num_classes) for one in experiments] == [
    ("F0", 1000), ("F1", 1000), ("F3", 1000), ("F0+", 30_000), ("F1+", 30_000)
  ]  # fmt: skip
  # The released code has 128 channels in the first bottlenecks of F+.
  assert [one.model.bottleneck for one in experiments] == ["paper"] * 3 + ["released"] * 2
  for request, one in zip(requests, experiments, strict=True):
    assert (request.batch_per_chip, one.data.train_pixels) == (32, 224)
    assert (one.model.kernels, one.model.block_execution) == ("reference", "unrolled")
    assert not one.model.rematerialize


def test_collectives_are_apart():
  reports = [released_report(one, 0.025, 0.005) for one in published.RELEASED_STEPS_V4]
  assert speed_without_collectives(reports[0]) == pytest.approx(32 / 0.025)
  figures = json.loads(json.dumps(as_json(reports)))["steps"]
  assert figures[0]["images_per_second_per_chip"] == pytest.approx(1280)
  assert figures[0]["with_collectives"] == pytest.approx(32 / 0.030)
  assert figures[0]["released_code"] == 1185
  assert figures[0]["paper_a"] == pytest.approx(1373, rel=2e-3)
  # Paper A did not train F0+.
  assert figures[3]["paper_a"] is None
  (line,) = [line for line in as_text(reports).splitlines() if line.startswith("F0 ")]
  assert line.split() == ["F0", "1,000", "1280", "1185", "1.080", "1067", "1374"]


def test_the_stored_figures_are_not_below_the_released_codes():
  stored = json.loads((RESULTS / "released_code.json").read_text())["steps"]
  assert [step["variant"] for step in stored] == [
    step.variant for step in published.RELEASED_STEPS_V4
  ]
  for step, released in zip(stored, published.RELEASED_STEPS_V4, strict=True):
    assert step["released_code"] == released.images_per_second_per_chip
    assert step["images_per_second_per_chip"] >= step["released_code"], step["variant"]
    assert (
      dataclasses.asdict(released).items()
      >= {
        "variant": step["variant"],
        "num_classes": step["num_classes"],
      }.items()
    )
