r"""One network's training step on every TPU generation that the compiler knows.

    python -m profiling.generations [--variant=F3] [--batch_per_chip=32] [--json=OUT]

Paper B chose NFNets' widths for TPUs of its time; this shows what later ones make of them. Six
compilations, ten minutes on two cores. Estimated from the compiler's schedule, not measured.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile.request import StepRequest
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.step_time import RULES
from profiling.step import MFU_DEFINITION, StepReport, check_variant, report
from train.report.output import write_json
from train.report.table import format_table
from train.report.units import format_gib

# Four chips of each, as one host has them.
SLICES = ("v3:2x2", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")


def as_json(reports: Sequence[StepReport]) -> dict[str, Any]:
  """Everything that is printed."""
  return {
    "what": "estimated from the compiler's schedule, not measured",
    "rules": RULES,
    "mfu_definition": MFU_DEFINITION,
    "error_bars": error_bars_json(),
    "versions": reports[0].compilation.versions,
    "steps": [
      {
        **dataclasses.asdict(step.request),
        "step_seconds": step.time.seconds,
        "collective_seconds": step.time.collective_seconds,
        "images_per_second_per_chip": step.images_per_second_per_chip,
        "mfu": step.mfu,
        "hbm_bytes_per_device": step.compilation.hbm_bytes,
        "fits": step.fits,
      }
      for step in reports
    ],
  }


def as_text(reports: Sequence[StepReport]) -> str:
  """For a terminal."""
  request = reports[0].request
  rows = [
    (
      step.topology.chip.name,
      f"{step.topology.chip.peak_flops / 1e12:.0f}",
      f"{step.time.seconds * 1e3:.1f}",
      f"{step.time.collective_seconds * 1e3:.1f}",
      f"{step.images_per_second_per_chip:.0f}",
      f"{step.mfu:.1%}",
      format_gib(step.compilation.hbm_bytes) + ("" if step.fits else " DOES NOT FIT"),
    )
    for step in reports
  ]
  columns = (
    "generation", "peak TFLOP/s", "step ms", "of it collectives", "images/s/chip", "MFU",
    "HBM GiB a device",
  )  # fmt: skip
  return "\n".join(
    [
      f"NFNet-{request.variant}, {request.num_classes:,} classes, {request.pixels} px, "
      f"{request.batch_per_chip} images a chip, four chips, kernels: {request.kernels}. Estimated, "
      "not measured:",
      format_table(rows, columns),
      f"MFU: {MFU_DEFINITION}.",
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def _define_flags() -> None:
  flags.DEFINE_string("variant", "F3", "Of the network.")
  flags.DEFINE_integer("batch_per_chip", 32, "Images a step and chip.", lower_bound=1)
  flags.DEFINE_string("json", None, "Write the figures to this file too.")


def main(arguments: list[str]) -> None:
  """Compiles for each generation and prints the table."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  check_variant(values.variant)
  reports = [
    report(
      StepRequest(
        variant=values.variant,
        topology=topology,
        batch_per_chip=values.batch_per_chip,
        pixels=224,
        num_classes=1000,
      )
    )
    for topology in tqdm(SLICES, desc="generations", leave=False, disable=None)
  ]
  write_json("json", values.json, as_json(reports))
  print(as_text(reports))


if __name__ == "__main__":
  _define_flags()
  run_main(main)
