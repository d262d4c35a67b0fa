"""Measures on the devices of this machine what has only been estimated, beside the estimates.

`python -m profiling.first_hour` prints and writes it. What the estimates say comes from
`profiling.estimate.expected`; they are for TPU v4, so ratios are made on no other device.
"""

import dataclasses
import importlib.metadata
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax

import kernels
from nfnet.command_line import is_installed
from profiling.compile.op_shapes import op_shapes
from profiling.compile.op_worker import OpRequest
from profiling.compile.request import plain_experiment, replace_fields
from profiling.compile.topology import Topology
from profiling.compiler_text.chips import chip_of_device_kind
from profiling.estimate.error_bar import Spread, spread
from profiling.estimate.expected import (
  ExpectedStep,
  expected_collective_seconds,
  expected_ops,
  expected_step,
)
from profiling.estimate.step_time import sum_by
from profiling.measure.collective_times import time_collectives
from profiling.measure.op_agreement import compare_ops
from profiling.measure.op_times import one_line, time_ops
from profiling.measure.training_step import measure
from train.config.experiment import Experiment
from train.step.sharding.mesh import cores_of

PARTS = ("numerics", "kernels", "step", "collectives")
"""The parts, in the order in which they run."""

Figures = dict[str, Any]
"""The JSON values of one part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Says what is measured.

  Attributes:
    variant: name of the network whose ops and step are measured.
    images: number of images per chip.
    pixels: side of an image.
    calls: number of calls of an op or collective that one measurement averages over.
    steps: number of steps to time; as many again are traced.
    mebibytes: sizes of the arrays that collectives are timed with.
    folder: folder for the profile of the step.
  """

  variant: str
  images: int
  pixels: int
  calls: int
  steps: int
  mebibytes: tuple[int, ...]
  folder: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
  """The devices that are present.

  Attributes:
    platform: "tpu", "gpu" or "cpu".
    device_kind: JAX's name of the devices.
    devices: number of devices.
    cores_per_device: TensorCores of a TPU device, otherwise 1.
    sides: number of chips along each axis of a TPU slice; empty elsewhere.
    versions: versions of jax, jaxlib and, if it is installed, libtpu.
  """

  platform: str
  device_kind: str
  devices: int
  cores_per_device: int
  sides: tuple[int, ...]
  versions: dict[str, str]

  @property
  def chips(self) -> int:
    """Returns the number of chips; a device that is not a known TPU counts as one."""
    chip = chip_of_device_kind(self.device_kind)
    return self.devices * self.cores_per_device // chip.cores if chip else self.devices

  def incomparable(self, expected: Topology) -> str | None:
    """Returns why estimates for chips of a slice say nothing about these devices; None if they do.

    Args:
      expected: slice whose chips the estimates are for; its size does not matter.
    """
    chip = expected.chip
    if self.device_kind != chip.device_kind:
      return f"not a {chip.device_kind}"
    if self.cores_per_device != chip.cores_per_device:
      return f"{self.cores_per_device} of {chip.cores_per_device} cores a device"
    return None


def present_devices() -> Devices:
  """Returns what JAX finds."""
  found = jax.devices()
  coordinates = [one.coords for one in found if hasattr(one, "coords")]
  names = ["jax", "jaxlib", *(["libtpu"] if is_installed("libtpu") else [])]
  return Devices(
    platform=found[0].platform,
    device_kind=found[0].device_kind,
    devices=len(found),
    cores_per_device=cores_of(found[0]),
    sides=sides_of(coordinates) if found[0].platform == "tpu" else (),
    versions={name: importlib.metadata.version(name) for name in names},
  )


def sides_of(coordinates: Sequence[Sequence[int]]) -> tuple[int, ...]:
  """Returns the number of chips along each axis of the box that the coordinates span."""
  return tuple(max(axis) - min(axis) + 1 for axis in zip(*coordinates, strict=True))


def run_part(part: str, plan: Plan, devices: Devices) -> Figures:
  """Measures one part.

  Args:
    part: one of `PARTS`.
    plan: what is measured.
    devices: devices that are present.

  Returns:
    JSON values; {"failed": why, in one line} if the part as a whole raises an error.
  """
  try:
    match part:
      case "numerics":
        return measure_numerics()
      case "kernels":
        return measure_kernels(plan, devices)
      case "step":
        return measure_step(plan, devices)
      case "collectives":
        return measure_collectives(plan, devices)
  # Whatever it is, it belongs into the report, and the other parts may still succeed.
  except Exception as error:
    return {"failed": one_line(error)}
  raise ValueError(f"{part=}: must be one of {PARTS}")


def measure_numerics() -> Figures:
  """Compares kernels and references at small shapes of each op."""
  return {"rows": [{**dataclasses.asdict(row), "agrees": row.agrees} for row in compare_ops()]}


def measure_kernels(plan: Plan, devices: Devices) -> Figures:
  """Times every op of the network beside its stored estimate."""
  expected = expected_ops()
  incomparable = devices.incomparable(expected.topology)
  if incomparable is None and plan.images != expected.images:
    incomparable = f"estimates are for {expected.images} images"
  request = OpRequest(topology=expected.topology.name, images=plan.images, kernels="pallas")
  before = kernels.fallback_counts.copy()
  rows = []
  for row in time_ops(op_shapes(plan.variant, pixels=plan.pixels), request, plan.calls):
    estimated = expected.seconds.get((row.label, row.direction))
    rows.append({**dataclasses.asdict(row), **_compared(row.seconds, estimated, incomparable)})
    if not row.is_resolved:
      rows[-1]["ratio"] = None
  return {
    "incomparable": incomparable,
    "estimated_with": expected.versions,
    "rows": rows,
    # What a step calls, as far as there are ratios.
    "compared_seconds": _sum_of_calls(rows, "seconds"),
    "compared_estimated_seconds": _sum_of_calls(rows, "estimated_seconds"),
    # A reference in place of a kernel is not an error, but slower than the estimate.
    "fallbacks": [
      {"op": op, "reason": reason} for op, reason in (kernels.fallback_counts - before)
    ],
  }


def measure_step(plan: Plan, devices: Devices) -> Figures:
  """Times a training step on all devices beside its stored estimate, by part of the network."""
  expected = expected_step()
  incomparable = devices.incomparable(expected.topology) or _other_step(plan, devices, expected)
  measurement = measure(experiment_of(plan, devices, expected), plan.steps, plan.folder)
  measured, estimated = (
    sum_by(rows, "part", "direction") for rows in (measurement.rows, expected.rows)
  )
  return {
    "incomparable": incomparable,
    "topology": expected.topology.name,
    "seconds": measurement.step_seconds,
    **_compared(measurement.step_seconds, expected.seconds, incomparable),
    "images_per_second": measurement.images_per_second,
    "busy_share": measurement.busy_share,
    "rows": [
      {
        "part": part,
        "direction": direction,
        "seconds": measured.get((part, direction)),
        **_compared(
          measured.get((part, direction)), estimated.get((part, direction)), incomparable
        ),
      }
      for part, direction in dict.fromkeys((*estimated, *measured))
    ],
  }


def experiment_of(plan: Plan, devices: Devices, expected: ExpectedStep) -> Experiment:
  """Returns the experiment of the stored estimate, with the network and images of the plan."""
  request = expected.request
  experiment = plain_experiment(
    plan.variant,
    batch_size=plan.images * devices.chips,
    pixels=plan.pixels,
    num_classes=request["num_classes"],
  )
  return replace_fields(
    experiment,
    model={name: request[name] for name in ("bottleneck", "kernels", "block_execution")}
    | {"rematerialize": request["rematerialize"]},
    optimizer={
      "ema_decay": 0.9999 if request["ema"] else None,
      "gradient_accumulation": request["gradient_accumulation"],
    },
    parallelism={
      "parameter_shards": math.gcd(request["parameter_shards"], devices.chips),
      "gradient_dtype": request["gradient_dtype"],
    },
  )


def measure_collectives(plan: Plan, devices: Devices) -> Figures:
  """Times collectives of all devices beside what the links' bandwidth gives."""
  topology = expected_step().topology
  incomparable = devices.incomparable(topology)
  slice_here = None if incomparable else Topology(topology.chip, devices.sides)
  if slice_here is not None and slice_here.chips == 1:
    incomparable = "one chip exchanges nothing"
  rows = []
  for row in time_collectives(plan.mebibytes, plan.calls):
    estimated = None
    if incomparable is None:
      estimated = expected_collective_seconds(row.name, row.whole_bytes, slice_here)
    rows.append({**dataclasses.asdict(row), **_compared(row.seconds, estimated, incomparable)})
  return {
    "incomparable": incomparable,
    "topology": slice_here and slice_here.name,
    "rows": rows,
  }


def summary(parts: dict[str, Figures]) -> dict[str, Spread]:
  """Returns the spread of measured over estimated times by part; parts without ratios are left out.

  Args:
    parts: figures by part, as `run_part` returns them.
  """
  found = {}
  for name, figures in parts.items():
    rows = [figures] if name == "step" else figures.get("rows", [])
    ratios = _ratios(rows)
    if ratios:
      found[name] = spread(ratios)
  return found


def _ratios(rows: Iterable[Figures]) -> list[float]:
  return [row["ratio"] for row in rows if row.get("ratio") is not None]


def _sum_of_calls(rows: Iterable[Figures], field: str) -> float:
  return sum(row["calls"] * row[field] for row in rows if row["ratio"] is not None)


def _compared(
  seconds: float | None, estimated_seconds: float | None, incomparable: str | None
) -> Figures:
  """Returns the estimate and the ratio of the time to it; None where they mean nothing."""
  if incomparable is not None:
    estimated_seconds = None
  ratio = seconds / estimated_seconds if seconds is not None and estimated_seconds else None
  return {"estimated_seconds": estimated_seconds, "ratio": ratio}


def _other_step(plan: Plan, devices: Devices, expected: ExpectedStep) -> str | None:
  """Returns what the stored estimate's step has that the plan's has not; None if nothing."""
  request = expected.request
  for name, here, there in (
    ("variant", plan.variant, request["variant"]),
    ("images", plan.images, request["batch_per_chip"]),
    ("pixels", plan.pixels, request["pixels"]),
    ("slice", devices.sides, expected.topology.sides),
  ):
    if here != there:
      return f"the estimate is for {name} {there}, not {here}"
  return None
