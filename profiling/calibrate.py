r"""Compares estimates with published figures of real TPUs, to show how far to trust estimates.

    python -m profiling.calibrate [--json=OUT]

It makes two comparisons, both with this project's plain-JAX ops:

- TPU v3: training steps of F0 to F5, whose times paper B gives. That code is public and is the same
  program as this project's with unrolled blocks, so the ratio is the estimator's own error.
- TPU v4: paper A's core-hours of pre-training. The code is not public and may be faster, so the
  ratio holds both the estimator's error and the difference between the programs.

There are thirteen compilations, the largest of which takes 10 minutes and 20 GB on two cores; they
are instant the second time. `profiling.estimate.error_bar` reads the stored ratios, so that every
command can print their spread with its estimates.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.request import StepRequest, plain_experiment, replace_fields
from profiling.compile.topology import parse_topology
from profiling.estimate import published
from profiling.estimate.error_bar import Spread, spread
from profiling.estimate.paper_runs import Estimates, estimate_all, requests
from profiling.estimate.report import StepReport, report
from profiling.estimate.step_time import RULES
from train.report.output import print_and_write, write_json
from train.report.table import format_table

# Paper B used 32 cores, each of which is a JAX device.
_SLICE_V3 = "v3:4x4"
_IMAGES_PER_CHIP_V3 = 64
_SLICE_V4 = "v4:4x4x8"
_COMPILE_SECONDS = 3600
_COMPILE_BYTES = 22 * 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """An estimate of one network beside the published figure.

  Attributes:
    variant: name of the network.
    pixels: side of an image.
    estimated: this project's step time in seconds, or core-hours.
    published: the same figure from a real TPU.
    fits: whether the compiled step fits a device's memory.
  """

  variant: str
  pixels: int
  estimated: float
  published: float
  fits: bool

  @property
  def ratio(self) -> float:
    """Returns published over estimated."""
    return self.published / self.estimated


def requests_v3() -> list[StepRequest]:
  """Returns the steps that paper B timed."""
  batch_size = _IMAGES_PER_CHIP_V3 * parse_topology(_SLICE_V3).chips
  return [
    StepRequest(
      experiment=replace_fields(
        plain_experiment(step.variant, batch_size=batch_size, pixels=step.pixels, num_classes=1000),
        model={"block_execution": "unrolled"},
      ),
      topology=_SLICE_V3,
    )
    for step in published.STEPS_V3
  ]


def compare_v3(reports: Sequence[StepReport]) -> list[Comparison]:
  """Compares step times in seconds.

  Args:
    reports: one for each of `requests_v3()`.
  """
  return [
    Comparison(
      variant=measured.variant,
      pixels=measured.pixels,
      estimated=step.time.seconds,
      published=measured.seconds,
      fits=step.fits,
    )
    for measured, step in zip(published.STEPS_V3, reports, strict=True)
  ]


def compare_v4(estimates: Estimates) -> list[Comparison]:
  """Compares core-hours of one epoch of 4e9 images."""
  return [
    Comparison(
      variant=variant,
      pixels=step.request.experiment.data.train_pixels,
      estimated=estimates.core_hours(variant, 1),
      published=published.core_hours_per_epoch(variant),
      fits=step.fits,
    )
    for variant, step in estimates.pretraining.items()
  ]


def as_json(tables: dict[str, list[Comparison]], versions: dict[str, str]) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  units = {"v3": "seconds of a step", "v4": "core-hours of 4e9 images"}
  return {
    "what": "estimated from the compiler's schedule, beside what was published from real TPUs",
    "rules": RULES,
    "versions": versions,
    "tables": {
      name: {
        "unit": units[name],
        "slice": {"v3": _SLICE_V3, "v4": _SLICE_V4}[name],
        "rows": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows],
        "spread": dataclasses.asdict(spread([row.ratio for row in rows])),
      }
      for name, rows in tables.items()
    },
  }


def as_text(tables: dict[str, list[Comparison]]) -> str:
  """Returns both tables for a terminal."""
  titles = {
    "v3": (
      f"Training steps on {_SLICE_V3}, 32 images a core, unrolled blocks; published: paper B, "
      "measured on TPU v3",
      "ms",
      1e3,
    ),
    "v4": (
      f"Core-hours of pre-training on 4e9 images, {_SLICE_V4}, blocks in a loop; published: paper "
      "A, on TPU v4",
      "core-hours",
      1.0,
    ),
  }
  lines = []
  for name, rows in tables.items():
    title, unit, factor = titles[name]
    table = [
      (
        row.variant,
        str(row.pixels),
        f"{row.estimated * factor:,.1f}",
        f"{row.published * factor:,.1f}",
        f"{row.ratio:.2f}",
        "yes" if row.fits else "NO",
      )
      for row in rows
    ]
    columns = ("variant", "px", f"estimated {unit}", f"published {unit}", "published / estimated")
    lines += [
      title,
      format_table(table, (*columns, "fits")),
      _describe(spread([row.ratio for row in rows])),
      "",
    ]
  return "\n".join([*lines, f"Rules: {RULES}."])


def _describe(ratios: Spread) -> str:
  """Returns one line about the ratios of a table."""
  return (
    f"Published over estimated: {ratios.mean:.2f} in the geometric mean, from {ratios.lowest:.2f} "
    f"to {ratios.highest:.2f} ({ratios.lowest / ratios.mean - 1:+.0%} to "
    f"{ratios.highest / ratios.mean - 1:+.0%} of the mean)."
  )


def main(arguments: list[str]) -> None:
  """Compiles, compares and prints."""
  refuse_arguments(arguments)
  reports = [
    report(request, **command_flags.limits())
    for request in tqdm(requests_v3(), desc="TPU v3", leave=False, disable=None)
  ]
  estimates = estimate_all(
    requests(parse_topology(_SLICE_V4), "reference"), **command_flags.limits()
  )
  tables = {"v3": compare_v3(reports), "v4": compare_v4(estimates)}
  versions = reports[0].compilation.versions
  print_and_write(
    as_text(tables), lambda: write_json("json", flags.FLAGS.json, as_json(tables, versions))
  )


if __name__ == "__main__":
  command_flags.define_limits(
    time_limit_seconds=_COMPILE_SECONDS, memory_limit_bytes=_COMPILE_BYTES
  )
  command_flags.define_json()
  run_main(main)
