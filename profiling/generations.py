r"""Estimates one network's training step on every TPU generation that the compiler knows.

    python -m profiling.generations [--variant=F3] [--batch_per_chip=32] [--json=OUT]

Paper B chose NFNets' widths for the TPUs of its time; this shows how they suit later ones. There
are six compilations, which take ten minutes on two cores. Times are estimated from the compiler's
schedule, not measured.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.request import StepRequest, plain_experiment
from profiling.compile.topology import parse_topology
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.report import MFU_DEFINITION, StepReport, report, request_as_json
from profiling.estimate.step_time import RULES
from train.report.output import print_and_write, write_json
from train.report.table import format_table
from train.report.units import format_gib

SLICES = ("v3:2x2", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
"""Slices of four chips, which is what one host has, for each generation."""


def requests(variant: str, batch_per_chip: int) -> list[StepRequest]:
  """Returns the step of a network on each of `SLICES`, at 224 px and with 1000 classes.

  Args:
    variant: name of the network.
    batch_per_chip: images per step and chip.
  """
  return [
    StepRequest(
      experiment=plain_experiment(
        variant,
        batch_size=batch_per_chip * parse_topology(topology).chips,
        pixels=224,
        num_classes=1000,
      ),
      topology=topology,
    )
    for topology in SLICES
  ]


def as_json(reports: Sequence[StepReport]) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  return {
    "what": "estimated from the compiler's schedule, not measured",
    "rules": RULES,
    "mfu_definition": MFU_DEFINITION,
    "error_bars": error_bars_json(),
    "versions": reports[0].compilation.versions,
    "steps": [
      {
        **request_as_json(step.request),
        **step.time.as_json(),
        "images_per_second_per_chip": step.images_per_second_per_chip,
        "mfu": step.mfu,
        "hbm_bytes_per_device": step.compilation.hbm_bytes,
        "fits": step.fits,
      }
      for step in reports
    ],
  }


def as_text(reports: Sequence[StepReport]) -> str:
  """Returns the table for a terminal."""
  request = reports[0].request
  experiment = request.experiment
  rows = [
    (
      step.topology.chip.name,
      f"{step.topology.chip.peak_flops / 1e12:.0f}",
      step.time.milliseconds,
      f"{step.time.exposed_collective_seconds * 1e3:.1f}",
      f"{step.images_per_second_per_chip:.0f}",
      f"{step.mfu:.1%}",
      format_gib(step.compilation.hbm_bytes) + ("" if step.fits else " DOES NOT FIT"),
    )
    for step in reports
  ]
  columns = (
    "generation", "peak TFLOP/s", "step ms, without overlap", "of it collectives",
    "images/s/chip", "MFU", "HBM GiB a device",
  )  # fmt: skip
  return "\n".join(
    [
      f"NFNet-{experiment.model.variant}, {experiment.data.num_classes:,} classes, "
      f"{experiment.data.train_pixels} px, {request.batch_per_chip} images a chip, four chips, "
      f"kernels: {experiment.model.kernels}. Estimated, not measured:",
      format_table(rows, columns),
      f"MFU: {MFU_DEFINITION}.",
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def _define_flags() -> None:
  """Defines all flags."""
  flags.DEFINE_string("variant", "F3", "Network.")
  flags.DEFINE_integer("batch_per_chip", 32, "Images per step and chip.", lower_bound=1)
  command_flags.define_limits()
  command_flags.define_json()


def main(arguments: list[str]) -> None:
  """Compiles for each generation and prints the table."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  command_flags.check_variant(values.variant)
  wanted = requests(values.variant, values.batch_per_chip)
  reports = [
    report(request, **command_flags.limits())
    for request in tqdm(wanted, desc="generations", leave=False, disable=None)
  ]
  print_and_write(as_text(reports), lambda: write_json("json", values.json, as_json(reports)))


if __name__ == "__main__":
  _define_flags()
  run_main(main)
