r"""What ways of saving memory do to a chip's memory and to the time of a step, by variant.

    python -m profiling.memory [--variants=F0,F3,F7,F7+] [--topology=v4:4x4x8] \
        [--kernels=pallas] [--json=OUT]

Compiles the step that `train/configs/jft_pretrain.py` trains with (32 images a chip on the 128 of
v4:4x4x8) in each of these ways (extra `tpu`; half an hour on two cores, instant the second time).
Memory is what the compiler states; times of steps are estimated from its schedule, not measured.
"""

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from profiling.compile.compilation import DeviceMemoryError
from profiling.compile.request import StepRequest, request_for
from profiling.compile.topology import Topology, parse_topology
from profiling.core_hours import CONFIGS
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.step_time import RULES
from profiling.step import StepReport, check_variant, report
from train.config.files import load_experiment
from train.report.output import write_json
from train.report.table import format_table
from train.report.units import format_gib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """One way of computing one variant's step.

  Attributes:
    request: which step.
    is_configured: whether `train/configs/jft_pretrain.py` has it so.
    step: its estimates; None where the compiler says that temporaries do not fit.
  """

  request: StepRequest
  is_configured: bool
  step: StepReport | None = None

  @property
  def way(self) -> str:
    """What is done to save memory."""
    parts = self.request.gradient_accumulation
    ways = ["blocks rematerialized"] if self.request.rematerialize else []
    ways += [f"{parts} parts"] if parts > 1 else []
    return ", ".join(ways) or "nothing"

  @property
  def fits(self) -> bool:
    """Whether it can run."""
    return self.step is not None and self.step.fits


def trials(variants: Iterable[str], topology: Topology, kernels: str) -> list[Trial]:
  """What to compile: nothing saved, blocks rematerialized, twice as many accumulated parts.

  Raises:
    UserError: the chips do not divide the batch.
  """
  found = []
  for variant in variants:
    configured = request_for(
      load_experiment(f"{CONFIGS / 'jft_pretrain.py'}:variant={variant},chips={topology.chips}"),
      topology,
      kernels,
    )
    parts = configured.gradient_accumulation
    for rematerialize, gradient_accumulation in ((False, parts), (True, parts), (False, 2 * parts)):
      request = dataclasses.replace(
        configured, rematerialize=rematerialize, gradient_accumulation=gradient_accumulation
      )
      found.append(Trial(request=request, is_configured=request == configured))
  return found


def run(trial: Trial) -> Trial:
  """Compiles and estimates.

  Raises:
    UserError: the step cannot be compiled, for another reason than a chip's memory.
  """
  try:
    return dataclasses.replace(trial, step=report(trial.request))
  except DeviceMemoryError:
    return trial


def fastest(results: Iterable[Trial]) -> dict[str, Trial]:
  """Of those that fit, by variant."""
  found: dict[str, Trial] = {}
  for trial in results:
    variant = trial.request.variant
    if trial.fits and (
      variant not in found or trial.step.time.seconds < found[variant].step.time.seconds
    ):
      found[variant] = trial
  return found


def as_json(results: Sequence[Trial], command: str) -> dict[str, Any]:
  """Everything that is printed, in base units."""
  chosen = list(fastest(results).values())
  return {
    "command": command,
    "what": "memory as the compiler states it; times of steps estimated, not measured",
    "rules": RULES,
    "error_bars": error_bars_json(),
    "steps": [
      {
        **dataclasses.asdict(trial.request),
        "is_configured": trial.is_configured,
        "is_fastest_that_fits": trial in chosen,
        "fits": trial.fits,
        **({} if trial.step is None else _figures(trial.step)),
      }
      for trial in results
    ],
  }


def _figures(step: StepReport) -> dict[str, Any]:
  return {
    "hbm_bytes": step.compilation.hbm_bytes,
    "hbm_margin_bytes": step.hbm_margin_bytes,
    "step_seconds": step.time.seconds,
    "lower_seconds": step.compilation.lower_seconds,
    "compile_seconds": step.compilation.compile_seconds,
    "compiler_peak_memory_bytes": step.compilation.peak_memory_bytes,
    "versions": step.compilation.versions,
  }


def as_text(results: Sequence[Trial]) -> str:
  """For a terminal."""
  request = results[0].request
  chosen = list(fastest(results).values())
  rows = [
    (
      trial.request.variant,
      trial.way,
      *(("refused", "", "") if trial.step is None else _cells(trial.step)),
      "*" if trial in chosen else "",
      "yes" if trial.is_configured else "",
    )
    for trial in results
  ]
  columns = (
    "variant", "saves memory by", "HBM GiB", "margin", "step ms", "fastest that fits", "configured",
  )  # fmt: skip
  return "\n".join(
    [
      f"{request.batch_per_chip} images a chip on {request.topology}, {request.pixels} px, "
      f"{request.num_classes:,} classes, kernels: {request.kernels}. Memory is what the compiler "
      "states (refused: its temporaries alone do not fit); times are estimated, not measured:",
      format_table(rows, columns),
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def _cells(step: StepReport) -> tuple[str, str, str]:
  return (
    format_gib(step.compilation.hbm_bytes),
    format_gib(step.hbm_margin_bytes),
    f"{step.time.seconds * 1e3:.1f}",
  )


def _define_flags() -> None:
  flags.DEFINE_list("variants", ["F0", "F3", "F7", "F7+"], "Of the network.")
  flags.DEFINE_string("topology", "v4:4x4x8", "Slice; its chips divide 4096.")
  flags.DEFINE_enum("kernels", "reference", ["reference", "pallas"], "How the ops are computed.")
  flags.DEFINE_string("json", None, "Write the figures to this file too.")


def main(arguments: list[str]) -> None:
  """Compiles each trial and prints the table."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  if not values.variants:
    raise UserError("--variants= names none; separate several with commas")
  for variant in values.variants:
    check_variant(variant, flag="variants")
  wanted = trials(values.variants, parse_topology(values.topology), values.kernels)
  results = [run(trial) for trial in tqdm(wanted, desc="steps", leave=False, disable=None)]
  print(as_text(results))
  command = f"python -m profiling.memory {shlex.join(sys.argv[1:])}"
  write_json("json", values.json, as_json(results, command))


if __name__ == "__main__":
  _define_flags()
  run_main(main)
