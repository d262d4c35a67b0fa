r"""What one training step costs on a TPU slice, which need not be there.

    python -m profiling.step --variant=F3 --batch_per_chip=32 --pixels=224 --num_classes=1000 \
        --topology=v4:2x2x1 [--kernels=pallas] [--json=OUT]

Compiles the training step of this project ahead of time with the real TPU compiler (extra `tpu`)
and adds up the compiler's own estimates. Every time printed is such an estimate, no measurement.
The second call with the same arguments is instant.
"""

import dataclasses
from typing import Any

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.cost import count
from nfnet.errors import UserError
from nfnet.variants import VARIANTS, get_variant
from profiling.compile.compilation import (
  MEMORY_LIMIT_BYTES,
  TIME_LIMIT_SECONDS,
  Compilation,
  compile_step,
)
from profiling.compile.request import StepRequest
from profiling.compile.topology import Topology, parse_topology
from profiling.compiler_text.chips import CHIPS, core_hours
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.step_time import RULES, StepTime, estimate, format_rows
from train.report.output import write_json
from train.report.units import format_size

MFU_DEFINITION = "6 x multiply-adds of a forward pass x images/s / peak bfloat16 FLOP/s of the chip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
  """A step's estimates and what they were made from.

  Attributes:
    request: which step.
    compilation: of it.
    time: estimated.
  """

  request: StepRequest
  compilation: Compilation
  time: StepTime

  @property
  def topology(self) -> Topology:
    """Of the slice."""
    return parse_topology(self.request.topology)

  @property
  def images_per_second_per_chip(self) -> float:
    """Estimated."""
    return self.request.batch_per_chip / self.time.seconds

  @property
  def training_flops(self) -> int:
    """Of one image: 6 x multiply-adds of a forward pass."""
    return count(
      self.request.variant,
      num_classes=self.request.num_classes,
      pixels=self.request.pixels,
      bottleneck=self.request.bottleneck,
    ).training_flops

  @property
  def mfu(self) -> float:
    """Model FLOP utilization, see `MFU_DEFINITION`."""
    peak_flops = self.topology.chip.peak_flops
    return self.training_flops * self.images_per_second_per_chip / peak_flops

  @property
  def hbm_margin_bytes(self) -> int:
    """Of a device's memory, what the step leaves."""
    return self.topology.chip.hbm_bytes_per_device - self.compilation.hbm_bytes

  @property
  def fits(self) -> bool:
    """Whether the step's memory is there."""
    return self.hbm_margin_bytes >= 0

  @property
  def core_hours_per_million_images(self) -> float:
    """Estimated."""
    return core_hours(self.topology.chip, 1, 1e6 / self.images_per_second_per_chip)


def report(request: StepRequest, **limits: Any) -> StepReport:
  """Compiles and estimates.

  Args:
    request: which step.
    **limits: see `profiling.compile.compilation.compile_step`.

  Raises:
    UserError: the request cannot be met or the compiler refuses.
  """
  topology = parse_topology(request.topology)
  compilation = compile_step(request, **limits)
  operations = read_operations(compilation.hlo_text)
  return StepReport(
    request=request,
    compilation=compilation,
    time=estimate(operations, topology, compilation.kernels),
  )


def check_variant(name: str, *, flag: str = "variant") -> None:
  """Complains about a flag.

  Args:
    name: of a network.
    flag: that it came from.

  Raises:
    UserError: there is no such network.
  """
  try:
    get_variant(name)
  except ValueError as error:
    raise UserError(f"--{flag}: {error}") from error


def as_json(result: StepReport) -> dict[str, Any]:
  """Everything that is printed, in base units."""
  compilation = dataclasses.asdict(result.compilation)
  del compilation["hlo_text"]
  del compilation["kernels"]
  return {
    "request": dataclasses.asdict(result.request),
    "compilation": compilation,
    "estimated": {
      "rules": RULES,
      "error_bars": error_bars_json(),
      "step_seconds": result.time.seconds,
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
  """For a terminal."""
  request, compilation, time = result.request, result.compilation, result.time
  chip = result.topology.chip
  mode = f", {chip.chip_config}" if chip.chip_config else ""
  gigabyte = 2**30
  device = "chip" if chip.cores_per_device == chip.cores else "core"
  head = [
    f"NFNet-{request.variant}, {request.num_classes:,} classes, {request.pixels} px, "
    f"{request.batch_per_chip} images a chip"
    + (f" in {request.gradient_accumulation} parts" if request.gradient_accumulation > 1 else "")
    + f" on {request.topology}{mode}, kernels: {request.kernels}"
    + (", blocks rematerialized" if request.rematerialize else "")
    + (", gradients travel in bfloat16" if request.gradient_dtype == "bfloat16" else "")
    + (", SAM" if request.sharpness_group_images else ""),
    "Estimated from the compiler's schedule, not measured:",
    f"  step              {time.seconds * 1e3:9.2f} ms",
    f"  images/s/chip     {result.images_per_second_per_chip:9.1f}",
    f"  MFU               {result.mfu:9.1%}  ({MFU_DEFINITION})",
    f"  core-hours        {result.core_hours_per_million_images:9.3f}  for a million images",
    "Stated by the compiler:",
    f"  HBM a {device:<11} {compilation.hbm_bytes / gigabyte:9.2f} GiB of "
    f"{chip.hbm_bytes_per_device / gigabyte:.0f}"
    + (f", margin {result.hbm_margin_bytes / gigabyte:.2f}" if result.fits else ": DOES NOT FIT"),
    "Measured:",
    f"  compiling         {compilation.compile_seconds:9.1f} s, "
    f"{format_size(compilation.peak_memory_bytes)} of memory at most, "
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


def _define_flags() -> None:
  flags.DEFINE_string("variant", None, f"One of {', '.join(VARIANTS)}.", required=True)
  flags.DEFINE_integer(
    "batch_per_chip", 32, "Images a step and chip, over all accumulated parts.", lower_bound=1
  )
  flags.DEFINE_integer("pixels", 224, "Side of an image.", lower_bound=1)
  flags.DEFINE_integer("num_classes", 1000, "Width of the classifier.", lower_bound=1)
  flags.DEFINE_string("topology", "v4:2x2x1", f"Slice; generations: {', '.join(CHIPS)}.")
  flags.DEFINE_enum("kernels", "reference", ["reference", "pallas"], "How the ops are computed.")
  flags.DEFINE_enum(
    "bottleneck", "paper", ["paper", "released"], "First stage of F+: 192 channels or 128."
  )
  flags.DEFINE_enum(
    "block_execution",
    None,
    ["scan", "unrolled"],
    "Equal blocks as a loop or written out; default: written out for kernels, up to F3's 48.",
  )
  flags.DEFINE_bool("rematerialize", False, "Recompute each block in the backward pass.")
  flags.DEFINE_bool("ema", False, "Keep a moving average of the parameters.")
  flags.DEFINE_integer(
    "parameter_shards", 1, "Chips that hold one copy of the parameters together.", lower_bound=1
  )
  flags.DEFINE_integer(
    "gradient_accumulation",
    1,
    "Parts that a chip computes its images in, one after the other.",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "gradient_dtype", "float32", ["bfloat16", "float32"], "In which gradients travel between chips."
  )
  flags.DEFINE_integer(
    "sharpness_group_images",
    None,
    "SAM: images of a chip that share a perturbation; default: without.",
    lower_bound=1,
  )
  flags.DEFINE_string("json", None, "Write everything to this file too.")
  flags.DEFINE_float("time_limit_seconds", TIME_LIMIT_SECONDS, "For the compiler.")
  flags.DEFINE_float("memory_limit_gb", MEMORY_LIMIT_BYTES / 1e9, "For the compiler.")


def main(arguments: list[str]) -> None:
  """Prints the report that the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  check_variant(values.variant)
  result = report(
    StepRequest(
      **{field.name: getattr(values, field.name) for field in dataclasses.fields(StepRequest)}
    ),
    time_limit_seconds=values.time_limit_seconds,
    memory_limit_bytes=int(values.memory_limit_gb * 1e9),
  )
  write_json("json", values.json, as_json(result))
  print(as_text(result))


if __name__ == "__main__":
  _define_flags()
  run_main(main)
