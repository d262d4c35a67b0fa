r"""Compares this project's plain-JAX ops with the code released with paper B, on TPU v4.

    python -m profiling.released_code [--json=OUT]

Both were compiled by the same compiler and estimated in the same way: the sum of the cycles that
the compiler gives each operation, 32 images a chip, 224 px, megacore, unrolled blocks. The released
code was compiled for one chip; collectives are in neither figure. There are five compilations, the
largest of which takes 6 minutes and 15 GB on two cores.
"""

from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.request import StepRequest, plain_experiment, replace_fields
from profiling.compile.topology import parse_topology
from profiling.estimate import published
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.report import StepReport, report
from profiling.estimate.step_time import RULES
from train.report.output import print_and_write, write_json
from train.report.table import format_table

_SLICE = "v4:2x2x1"
_BATCH_PER_CHIP = 32
_COMPILE_BYTES = 20 * 10**9


def request_for(released: published.ReleasedStep) -> StepRequest:
  """Returns the same step of this project."""
  experiment = plain_experiment(
    released.variant,
    batch_size=_BATCH_PER_CHIP * parse_topology(_SLICE).chips,
    pixels=224,
    num_classes=released.num_classes,
  )
  # In the released code, the first bottleneck differs only for F+.
  bottleneck = "released" if released.variant.endswith("+") else "paper"
  return StepRequest(
    experiment=replace_fields(
      experiment, model={"bottleneck": bottleneck, "block_execution": "unrolled"}
    ),
    topology=_SLICE,
  )


def speed_without_collectives(step: StepReport) -> float:
  """Returns the estimated images per second and chip without the collectives' time."""
  return step.request.batch_per_chip / step.time.compute_seconds


def as_json(reports: list[StepReport]) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  return {
    "what": "estimated from the compiler's schedule, not measured; collectives aside",
    "rules": RULES,
    "error_bars": error_bars_json(),
    "versions": reports[0].compilation.versions,
    "steps": [
      {
        "variant": released.variant,
        "num_classes": released.num_classes,
        "images_per_second_per_chip": speed_without_collectives(step),
        "with_collectives": step.images_per_second_per_chip,
        "released_code": released.images_per_second_per_chip,
        "paper_a": _paper_a(released),
      }
      for released, step in zip(published.RELEASED_STEPS_V4, reports, strict=True)
    ],
  }


def _paper_a(released: published.ReleasedStep) -> float | None:
  """Returns the images per second and chip of paper A; None where it did not train the network."""
  if released.variant not in published.VARIANTS:
    return None
  return published.images_per_second_per_chip(released.variant)


def as_text(reports: list[StepReport]) -> str:
  """Returns the table for a terminal."""
  rows = []
  for released, step in zip(published.RELEASED_STEPS_V4, reports, strict=True):
    ours, theirs, paper = (
      speed_without_collectives(step),
      released.images_per_second_per_chip,
      _paper_a(released),
    )
    rows.append(
      (
        released.variant,
        f"{released.num_classes:,}",
        f"{ours:.0f}",
        f"{theirs:.0f}",
        f"{ours / theirs:.3f}",
        f"{step.images_per_second_per_chip:.0f}",
        f"{paper:.0f}" if paper else "",
      )
    )
  columns = (
    "variant", "classes", "this project", "released code", "ratio", "with collectives",
    "paper A's hours imply",
  )  # fmt: skip
  return "\n".join(
    [
      "Training, images/s/chip on TPU v4, kernels: reference. Estimated, not measured:",
      format_table(rows, columns),
      f"Collectives (on {_SLICE}) are in the last but one column only.",
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def main(arguments: list[str]) -> None:
  """Compiles and prints the table."""
  refuse_arguments(arguments)
  reports = [
    report(request_for(released), **command_flags.limits())
    for released in tqdm(published.RELEASED_STEPS_V4, desc="steps", leave=False, disable=None)
  ]
  print_and_write(as_text(reports), lambda: write_json("json", flags.FLAGS.json, as_json(reports)))


if __name__ == "__main__":
  command_flags.define_limits(memory_limit_bytes=_COMPILE_BYTES)
  command_flags.define_json()
  run_main(main)
