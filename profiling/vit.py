r"""Estimates the cost of the vision transformers that paper A compares NFNets with.

    python -m profiling.vit [--topology=v4:4x4x8] [--json=OUT]

Compiles a training step of SoViT-400m/14, ViT-g/14 and ViT-G/14 in the published shapes with the
real TPU compiler: bfloat16, Adafactor, 224 px, 32 images a chip. From the step time it computes the
core-hours for the images seen in pre-training and shows them beside the published ones. Every time
is an estimate from the compiler's schedule, not a measurement. There are three compilations of one
to three minutes.
"""

import dataclasses
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.cache import run_worker
from profiling.compile.compilation import read_compilation
from profiling.compile.topology import parse_topology
from profiling.compile.vision_transformer.model import VISION_TRANSFORMERS
from profiling.compile.vision_transformer.worker import VisionTransformerRequest
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.compiler_text.schedule import read_schedule
from profiling.estimate import published
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.report import StepReport
from profiling.estimate.step_time import RULES, estimate
from train.report.output import print_and_write, write_json
from train.report.table import format_table
from train.report.units import format_gib

_BATCH_PER_CHIP = 32
_PIXELS = 224
_NUM_CLASSES = 30_000
# Without rematerialization, 32 images a chip need 31 GiB of HBM for SoViT-400m and do not fit for
# the other two.
_REMATERIALIZED = ("ViT-g/14", "ViT-G/14")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(StepReport):
  """A step's estimates beside what was published.

  Attributes:
    request: step that was compiled.
    run: published run of the same network.
  """

  request: VisionTransformerRequest
  run: published.VisionTransformerRun

  @property
  def training_flops(self) -> int:
    """Returns 6 x multiply-adds of a forward pass of one image."""
    model = VISION_TRANSFORMERS[self.request.model]
    return 6 * model.macs(self.request.pixels, self.request.num_classes)

  @property
  def estimated_core_hours(self) -> float | None:
    """Returns the core-hours of the published pre-training; None where its images are unknown."""
    if self.run.images is None:
      return None
    return self.run.images / 1e6 * self.core_hours_per_million_images


def report(run: published.VisionTransformerRun, topology: str, **options: Any) -> Report:
  """Compiles the step of a published run and estimates its time.

  Args:
    run: published run.
    topology: name of the slice.
    **options: see `profiling.compile.cache.run_worker`.

  Raises:
    UserError: there is no such slice, or the compiler refuses.
  """
  request = VisionTransformerRequest(
    model=run.model,
    topology=topology,
    batch_per_chip=_BATCH_PER_CHIP,
    pixels=_PIXELS,
    num_classes=_NUM_CLASSES,
    rematerialize=run.model in _REMATERIALIZED,
  )
  parsed = parse_topology(topology)
  folder, versions = run_worker(
    "profiling.compile.vision_transformer.worker",
    dataclasses.asdict(request),
    what=f"compiling {run.model} for {topology}",
    dumps=False,
    **options,
  )
  compilation = read_compilation(folder, versions, parsed.chip)
  return Report(
    run=run,
    request=request,
    compilation=compilation,
    time=estimate(
      read_operations(compilation.hlo_text),
      read_schedule(compilation.hlo_text),
      parsed,
      coordinates=compilation.coordinates,
    ),
  )


def as_json(reports: list[Report]) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  return {
    "what": "estimated from the compiler's schedule, not measured",
    "rules": RULES,
    "error_bars": error_bars_json(),
    "versions": reports[0].compilation.versions,
    "steps": [
      {
        **dataclasses.asdict(one.request),
        **one.time.as_json(),
        "images_per_second_per_chip": one.images_per_second_per_chip,
        "training_flops_per_image": one.training_flops,
        "mfu": one.mfu,
        "hbm_bytes": one.compilation.hbm_bytes,
        "pretraining_images": one.run.images,
        "estimated_core_hours": one.estimated_core_hours,
        "published_core_hours": one.run.core_hours,
      }
      for one in reports
    ],
  }


def as_text(reports: list[Report]) -> str:
  """Returns the table for a terminal."""
  rows = []
  for one in reports:
    hours = one.estimated_core_hours
    affordable = one.run.core_hours / one.core_hours_per_million_images / 1e3
    rows.append(
      (
        one.run.model + (" remat" if one.request.rematerialize else ""),
        f"{one.training_flops / 6e9:.1f}",
        one.time.milliseconds,
        f"{one.images_per_second_per_chip:.0f}",
        f"{one.mfu:.1%}",
        format_gib(one.compilation.hbm_bytes) + ("" if one.fits else " DOES NOT FIT"),
        "" if one.run.images is None else f"{one.run.images / 1e9:.0f}",
        "" if hours is None else f"{hours:,.0f}",
        f"{one.run.core_hours:,.0f}",
        "" if hours is None else f"{hours / one.run.core_hours:.2f}",
        f"{affordable:.1f}",
      )
    )
  header = (
    "network",
    "GMAC",
    "step ms, without overlap",
    "images/s/chip",
    "MFU",
    "HBM GiB",
    "1e9 images",
    "core-hours",
    "published",
    "ratio",
    "1e9 images for the published",
  )
  first = reports[0].request
  return "\n".join(
    [
      f"Steps on {first.topology}, {first.batch_per_chip} images of {first.pixels} px a chip, "
      f"{first.num_classes:,} classes. Estimated, not measured:",
      format_table(rows, header),
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def main(arguments: list[str]) -> None:
  """Prints the table."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  reports = [
    report(run, values.topology, **command_flags.limits())
    for run in tqdm(published.VISION_TRANSFORMER_RUNS, desc="networks", leave=False, disable=None)
  ]
  print_and_write(as_text(reports), lambda: write_json("json", values.json, as_json(reports)))


if __name__ == "__main__":
  command_flags.define_topology("v4:4x4x8")
  command_flags.define_limits()
  command_flags.define_json()
  run_main(main)
