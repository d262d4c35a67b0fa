"""Compiles a training step, estimates its time, and formats the result as text and JSON."""

import dataclasses
from typing import Any

from nfnet.cost import count
from profiling.compile.compilation import Compilation, compile_step
from profiling.compile.request import StepRequest
from profiling.compile.topology import Topology, parse_topology
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.compiler_text.schedule import read_schedule
from profiling.estimate.core_hours import core_hours
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.step_time import RULES, StepTime, estimate, format_rows
from train.config.json_conversion import to_json

MFU_DEFINITION = "6 x multiply-adds of a forward pass x images/s / peak bfloat16 FLOP/s of the chip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
  """A step's estimates and the compilation from which they follow.

  Attributes:
    request: step that was compiled.
    compilation: the compiler's figures for the step.
    time: estimated time of the step.
  """

  request: StepRequest
  compilation: Compilation
  time: StepTime

  @property
  def topology(self) -> Topology:
    """Returns the slice."""
    return parse_topology(self.request.topology)

  @property
  def images_per_second_per_chip(self) -> float:
    """Returns the estimated speed."""
    return self.request.batch_per_chip / self.time.seconds

  @property
  def training_flops(self) -> int:
    """Returns 6 x multiply-adds of a forward pass of one image."""
    model, data = self.request.experiment.model, self.request.experiment.data
    return count(
      model.variant,
      num_classes=data.num_classes,
      pixels=data.train_pixels,
      bottleneck=model.bottleneck,
    ).training_flops

  @property
  def mfu(self) -> float:
    """Returns the estimated model FLOP utilization, see `MFU_DEFINITION`."""
    peak_flops = self.topology.chip.peak_flops
    return self.training_flops * self.images_per_second_per_chip / peak_flops

  @property
  def hbm_margin_bytes(self) -> int:
    """Returns the device memory that the step leaves free; negative if the step does not fit."""
    return self.topology.chip.hbm_bytes_per_device - self.compilation.hbm_bytes

  @property
  def fits(self) -> bool:
    """Returns whether a device has the memory that the step needs."""
    return self.hbm_margin_bytes >= 0

  @property
  def core_hours_per_million_images(self) -> float:
    """Returns the estimated core-hours for a million images."""
    return core_hours(self.topology.chip, 1, 1e6 / self.images_per_second_per_chip)


def report(request: StepRequest, **options: Any) -> StepReport:
  """Compiles a step and estimates its time.

  Args:
    request: step to compile.
    **options: see `profiling.compile.compilation.compile_step`.

  Raises:
    UserError: the request cannot be met or the compiler refuses.
  """
  compilation = compile_step(request, **options)
  topology = parse_topology(request.topology)
  return StepReport(
    request=request,
    compilation=compilation,
    time=estimate(
      read_operations(compilation.hlo_text),
      read_schedule(compilation.hlo_text),
      topology,
      compilation.kernels,
      compilation.coordinates,
    ),
  )


def request_as_json(request: StepRequest) -> dict[str, Any]:
  """Returns the request as JSON values: its main fields, and the whole experiment."""
  experiment = request.experiment
  model, data, parallelism = experiment.model, experiment.data, experiment.parallelism
  return {
    "variant": model.variant,
    "topology": request.topology,
    "batch_per_chip": request.batch_per_chip,
    "pixels": data.train_pixels,
    "num_classes": data.num_classes,
    "kernels": model.kernels,
    "bottleneck": model.bottleneck,
    "block_execution": model.block_execution,
    "rematerialize": model.rematerialize,
    "ema": experiment.optimizer.ema_decay is not None,
    "parameter_shards": parallelism.parameter_shards,
    "gradient_accumulation": experiment.optimizer.gradient_accumulation,
    "gradient_dtype": parallelism.gradient_dtype,
    "sharpness_group_images": experiment.sharpness.group_images,
    "experiment": to_json(experiment),
  }


def as_json(result: StepReport) -> dict[str, Any]:
  """Returns everything that `as_text` shows, in base units."""
  compilation = dataclasses.asdict(result.compilation)
  del compilation["hlo_text"]
  del compilation["coordinates"]
  del compilation["kernels"]
  return {
    "request": request_as_json(result.request),
    "compilation": compilation,
    "estimated": {
      "rules": RULES,
      "error_bars": error_bars_json(),
      **result.time.as_json(),
      "images_per_second_per_chip": result.images_per_second_per_chip,
      "mfu": result.mfu,
      "mfu_definition": MFU_DEFINITION,
      "core_hours_per_million_images": result.core_hours_per_million_images,
      "collective_bytes": result.time.collective_bytes,
      "rows": [dataclasses.asdict(row) for row in result.time.rows],
    },
    "hbm_margin_bytes": result.hbm_margin_bytes,
    "fits": result.fits,
  }


def as_text(result: StepReport) -> str:
  """Returns the report of one step for a terminal."""
  compilation, time = result.compilation, result.time
  chip = result.topology.chip
  gigabyte = 2**30
  device = "chip" if chip.cores_per_device == chip.cores else "core"
  head = [
    _title(result),
    "Estimated from the compiler's schedule, not measured:",
    f"  step              {time.seconds * 1e3:9.2f} ms  "
    f"({time.seconds_without_overlap * 1e3:.2f} if nothing overlapped with collectives)",
    f"  images/s/chip     {result.images_per_second_per_chip:9.1f}",
    f"  MFU               {result.mfu:9.1%}  ({MFU_DEFINITION})",
    f"  core-hours        {result.core_hours_per_million_images:9.3f}  for a million images",
    "Stated by the compiler:",
    f"  HBM a {device:<11} {compilation.hbm_bytes / gigabyte:9.2f} GiB of "
    f"{chip.hbm_bytes_per_device / gigabyte:.0f}"
    + (f", margin {result.hbm_margin_bytes / gigabyte:.2f}" if result.fits else ": DOES NOT FIT"),
    "Measured:",
    f"  compiling         {compilation.compile_seconds:9.1f} s, "
    f"{compilation.peak_memory_bytes / 1e9:.1f} GB of memory at most, "
    f"lowering {compilation.lower_seconds:.1f} s",
    "",
  ]
  return "\n".join(
    [
      *head,
      format_rows(time.rows, time.seconds),
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def _title(result: StepReport) -> str:
  """Returns one line that says which step it is."""
  experiment, chip = result.request.experiment, result.topology.chip
  parts = experiment.optimizer.gradient_accumulation
  return (
    f"NFNet-{experiment.model.variant}, {experiment.data.num_classes:,} classes, "
    f"{experiment.data.train_pixels} px, {result.request.batch_per_chip} images a chip"
    + (f" in {parts} parts" if parts > 1 else "")
    + f" on {result.request.topology}"
    + (f", {chip.chip_config}" if chip.chip_config else "")
    + f", kernels: {experiment.model.kernels}"
    + (", blocks rematerialized" if experiment.model.rematerialize else "")
    + (
      ", gradients travel in bfloat16"
      if experiment.parallelism.gradient_dtype == "bfloat16"
      else ""
    )
    + (", SAM" if experiment.sharpness.group_images else "")
    + (", images mixed" if experiment.mixing.is_on else "")
  )
