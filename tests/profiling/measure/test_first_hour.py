"""The comparison with estimates, on a TPU v4 that is made up, and the parts of a report."""

import dataclasses
import pathlib

import pytest

from profiling.estimate.error_bar import Spread
from profiling.estimate.expected import (
  expected_collective_seconds,
  expected_ops,
  expected_step,
)
from profiling.estimate.step_time import Row
from profiling.measure import first_hour
from profiling.measure.collective_times import CollectiveTime
from profiling.measure.first_hour import Devices, Plan, run_part, sides_of, summary
from profiling.measure.op_times import OpTime
from profiling.measure.training_step import Measurement

TPU_V4 = Devices(
  platform="tpu",
  device_kind="TPU v4",
  devices=4,
  cores_per_device=2,
  sides=(2, 2, 1),
  versions={},
)
SPLIT = dataclasses.replace(TPU_V4, devices=8, cores_per_device=1)
CPU = dataclasses.replace(TPU_V4, platform="cpu", device_kind="cpu", cores_per_device=1, sides=())
PLAN = Plan(
  variant="F0",
  images=32,
  pixels=224,
  calls=1,
  steps=1,
  mebibytes=(16,),
  folder=pathlib.Path("profile"),
)


def ops(monkeypatch, *rows):
  monkeypatch.setattr(first_hour, "time_ops", lambda shapes, request, calls: rows)


def stem(factor, **fields):
  ((label, direction), seconds) = next(
    (key, seconds) for key, seconds in expected_ops().seconds.items() if key[0].startswith("stem")
  )
  row = OpTime(label=label, direction=direction, calls=2, is_resolved=True)
  return dataclasses.replace(row, seconds=factor * seconds, **fields)


def test_ops_stand_beside_their_stored_estimates(monkeypatch):
  broken = OpTime(label="conv", direction="forward", calls=1, error="does not compile")
  new = OpTime(label="new op", direction="forward", calls=1, seconds=1.0, is_resolved=True)
  ops(monkeypatch, stem(1.5), stem(1.2, is_resolved=False), broken, new)
  figures = run_part("kernels", PLAN, TPU_V4)
  assert figures["incomparable"] is None
  assert [row["ratio"] for row in figures["rows"]] == [pytest.approx(1.5), None, None, None]
  assert [row["estimated_seconds"] is None for row in figures["rows"]] == [
    *(False, False),
    *(True, True),
  ]
  assert figures["compared_seconds"] == pytest.approx(1.5 * figures["compared_estimated_seconds"])
  assert figures["compared_seconds"] == 2 * stem(1.5).seconds
  assert figures["rows"][2]["error"] == "does not compile"


@pytest.mark.parametrize(
  ("devices", "plan", "reason"),
  [
    (CPU, PLAN, "not a TPU v4"),
    (dataclasses.replace(TPU_V4, device_kind="TPU v5"), PLAN, "not a TPU v4"),
    (SPLIT, PLAN, "1 of 2 cores a device"),
    (TPU_V4, dataclasses.replace(PLAN, images=16), "estimates are for 32 images"),
  ],
)
def test_ops_elsewhere_have_no_ratios(devices, plan, reason, monkeypatch):
  ops(monkeypatch, stem(1.5))
  figures = run_part("kernels", plan, devices)
  assert figures["incomparable"] == reason
  (row,) = figures["rows"]
  assert row["seconds"] is not None
  assert row["ratio"] is row["estimated_seconds"] is None
  assert summary({"kernels": figures}) == {}


def step(monkeypatch, factor):
  expected = expected_step()
  seen = []

  def measure(experiment, steps, folder):
    seen.append(experiment)
    rows = [dataclasses.replace(row, seconds=factor * row.seconds) for row in expected.rows]
    return Measurement(
      platform="tpu",
      device_kind="TPU v4",
      devices=4,
      cores_per_device=2,
      images_per_step=experiment.data.batch_size,
      training_flops_per_image=1,
      steps=steps,
      step_seconds=factor * expected.seconds,
      traced_step_seconds=1.0,
      busy_share=1.0,
      rows=(*rows, Row(part="new", direction="", kind="kernel", seconds=1.0)),
      versions={},
    )

  monkeypatch.setattr(first_hour, "measure", measure)
  return seen


def test_the_step_stands_beside_its_stored_estimate(monkeypatch):
  seen = step(monkeypatch, 1.25)
  figures = run_part("step", PLAN, TPU_V4)
  assert figures["incomparable"] is None
  assert figures["ratio"] == pytest.approx(1.25)
  assert figures["images_per_second"] == pytest.approx(128 / (1.25 * expected_step().seconds))
  *rows, new = figures["rows"]
  assert [row["ratio"] for row in rows] == pytest.approx([1.25] * len(rows))
  assert {row["part"] for row in rows} >= {"stem", "stage 3", "optimizer", "collectives"}
  assert (new["part"], new["ratio"], new["estimated_seconds"]) == ("new", None, None)
  # What the stored estimate was compiled from.
  (experiment,) = seen
  request = expected_step().request
  model, data = experiment.model, experiment.data
  assert (model.variant, model.kernels, model.block_execution, model.rematerialize) == tuple(
    request[name] for name in ("variant", "kernels", "block_execution", "rematerialize")
  )
  assert (data.batch_size, data.train_pixels, data.num_classes) == (
    4 * request["batch_per_chip"],
    request["pixels"],
    request["num_classes"],
  )
  parallelism = experiment.parallelism
  assert (parallelism.parameter_shards, parallelism.gradient_dtype) == (
    request["parameter_shards"],
    request["gradient_dtype"],
  )
  assert experiment.optimizer.ema_decay is None


@pytest.mark.parametrize(
  ("devices", "changes", "reason"),
  [
    (CPU, {}, "not a TPU v4"),
    (SPLIT, {}, "1 of 2 cores a device"),
    (dataclasses.replace(TPU_V4, sides=(2, 2, 2)), {}, "for slice (2, 2, 1), not (2, 2, 2)"),
    (TPU_V4, {"variant": "F1"}, "for variant F0, not F1"),
    (TPU_V4, {"images": 16}, "for images 32, not 16"),
    (TPU_V4, {"pixels": 256}, "for pixels 224, not 256"),
  ],
)
def test_another_step_has_no_ratio(devices, changes, reason, monkeypatch):
  step(monkeypatch, 1.25)
  figures = run_part("step", dataclasses.replace(PLAN, **changes), devices)
  assert figures["incomparable"].endswith(reason)
  assert figures["ratio"] is figures["estimated_seconds"] is None
  assert all(row["ratio"] is None for row in figures["rows"])


def collectives(monkeypatch, factor):
  seconds = expected_collective_seconds("psum", 2**24, expected_step().topology)
  monkeypatch.setattr(
    first_hour,
    "time_collectives",
    lambda mebibytes, calls: [
      CollectiveTime(name="psum", whole_bytes=size << 20, seconds=factor * seconds)
      for size in mebibytes
    ],
  )


def test_collectives_stand_beside_what_the_links_of_the_slice_need(monkeypatch):
  collectives(monkeypatch, 1.1)
  (row,) = run_part("collectives", PLAN, TPU_V4)["rows"]
  assert row["ratio"] == pytest.approx(1.1)
  # Four links of each chip instead of two, and eight chips.
  larger = dataclasses.replace(TPU_V4, devices=32, sides=(4, 4, 2))
  figures = run_part("collectives", PLAN, larger)
  assert figures["topology"] == "v4:4x4x2"
  assert figures["rows"][0]["ratio"] == pytest.approx(1.1 * (3 / 4 / 2) / (31 / 32 / 5))


@pytest.mark.parametrize(
  ("devices", "reason"),
  [
    (CPU, "not a TPU v4"),
    (dataclasses.replace(TPU_V4, devices=1, sides=(1, 1, 1)), "one chip exchanges nothing"),
  ],
)
def test_collectives_without_links_have_no_ratio(devices, reason, monkeypatch):
  collectives(monkeypatch, 1.1)
  figures = run_part("collectives", PLAN, devices)
  assert figures["incomparable"] == reason
  assert figures["rows"][0]["ratio"] is None


@pytest.mark.parametrize("part", first_hour.PARTS)
def test_a_part_that_fails_says_so_in_a_line(part, monkeypatch):
  def fail(*arguments):
    raise RuntimeError("the device\nis lost")

  for name in ("compare_ops", "time_ops", "measure", "time_collectives"):
    monkeypatch.setattr(first_hour, name, fail)
  assert run_part(part, PLAN, TPU_V4) == {"failed": "RuntimeError: the device"}


def test_the_error_bar_is_made_of_ratios_alone():
  parts = {
    "numerics": {"rows": [{"agrees": True}]},
    "kernels": {"rows": [{"ratio": 1.0}, {"ratio": None}, {"ratio": 4.0}]},
    "step": {"ratio": 1.5, "rows": [{"ratio": 9.0}]},
    "collectives": {"failed": "RuntimeError"},
  }
  assert summary(parts) == {
    "kernels": Spread(mean=pytest.approx(2.0), lowest=1.0, highest=4.0),
    "step": Spread(mean=pytest.approx(1.5), lowest=1.5, highest=1.5),
  }


def test_a_slice_has_the_sides_that_its_chips_span():
  assert sides_of([(0, 0, 0), (1, 0, 0), (0, 3, 0), (1, 3, 0)]) == (2, 4, 1)


def test_chips_are_counted_by_their_cores():
  assert TPU_V4.chips == SPLIT.chips == CPU.chips == 4
