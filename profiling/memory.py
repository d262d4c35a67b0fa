r"""Estimates how ways of saving memory change a chip's memory and the step time, by variant.

    python -m profiling.memory [--variants=F0,F3,F7,F7+] [--topology=v4:4x4x8] \
        [--kernels=pallas] [--json=OUT]

Compiles the step of `train/configs/jft_pretrain.py` (32 images a chip on the 128 chips of v4:4x4x8)
in each of these ways (extra `tpu`; half an hour on two cores, instant the second time).
Memory is what the compiler states (`Compilation` in `profiling.compile.compilation`); step times
are estimated from its schedule, not measured.
"""

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.request import StepRequest, replace_fields
from profiling.compile.topology import Topology, parse_topology
from profiling.compile.worker_process import DeviceMemoryError
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.paper_runs import pretraining_experiment
from profiling.estimate.report import StepReport, report, request_as_json
from profiling.estimate.step_time import RULES
from train.report.output import print_and_write, write_json
from train.report.table import format_table
from train.report.units import format_gib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """One way of computing one variant's step.

  Attributes:
    request: step to compile.
    is_configured: whether `train/configs/jft_pretrain.py` computes it this way.
    step: estimates; None where the compiler says that temporaries do not fit.
  """

  request: StepRequest
  is_configured: bool
  step: StepReport | None = None

  @property
  def way(self) -> str:
    """Returns a description of how memory is saved."""
    experiment = self.request.experiment
    parts = experiment.optimizer.gradient_accumulation
    ways = ["blocks rematerialized"] if experiment.model.rematerialize else []
    ways += [f"{parts} parts"] if parts > 1 else []
    return ", ".join(ways) or "nothing"

  @property
  def fits(self) -> bool:
    """Returns whether a chip has the memory for it."""
    return self.step is not None and self.step.fits


def trials(variants: Iterable[str], topology: Topology, kernels: str) -> list[Trial]:
  """Returns the trials: nothing saved, blocks rematerialized, twice as many accumulated parts.

  Args:
    variants: names of networks.
    topology: slice.
    kernels: "reference" or "pallas".

  Raises:
    UserError: the chips do not divide the batch.
  """
  found = []
  for variant in variants:
    configured = pretraining_experiment(variant, kernels, chips=topology.chips)
    parts = configured.optimizer.gradient_accumulation
    for rematerialize, gradient_accumulation in ((False, parts), (True, parts), (False, 2 * parts)):
      experiment = replace_fields(
        configured,
        model={"rematerialize": rematerialize},
        optimizer={"gradient_accumulation": gradient_accumulation},
      )
      request = StepRequest(experiment=experiment, topology=topology.name)
      found.append(Trial(request=request, is_configured=experiment == configured))
  return found


def run(trial: Trial, **options: Any) -> Trial:
  """Compiles a trial and estimates its step time.

  Args:
    trial: trial without estimates.
    **options: see `profiling.compile.compilation.compile_step`.

  Raises:
    UserError: the step cannot be compiled, for a reason other than a chip's memory.
  """
  try:
    return dataclasses.replace(trial, step=report(trial.request, **options))
  except DeviceMemoryError:
    return trial


def fastest(results: Iterable[Trial]) -> dict[str, Trial]:
  """Returns the fastest of the trials that fit, by variant."""
  found: dict[str, Trial] = {}
  for trial in results:
    variant = trial.request.experiment.model.variant
    if trial.fits and (
      variant not in found or trial.step.time.seconds < found[variant].step.time.seconds
    ):
      found[variant] = trial
  return found


def as_json(results: Sequence[Trial], command: str) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  chosen = list(fastest(results).values())
  return {
    "command": command,
    "what": "memory as the compiler states it; step times estimated, not measured",
    "rules": RULES,
    "error_bars": error_bars_json(),
    "steps": [
      {
        **request_as_json(trial.request),
        "is_configured": trial.is_configured,
        "is_fastest_that_fits": trial in chosen,
        "fits": trial.fits,
        **({} if trial.step is None else _figures(trial.step)),
      }
      for trial in results
    ],
  }


def _figures(step: StepReport) -> dict[str, Any]:
  """Returns the figures of a trial that compiled, in base units."""
  return {
    "hbm_bytes": step.compilation.hbm_bytes,
    "hbm_margin_bytes": step.hbm_margin_bytes,
    **step.time.as_json(),
    "lower_seconds": step.compilation.lower_seconds,
    "compile_seconds": step.compilation.compile_seconds,
    "compiler_peak_memory_bytes": step.compilation.peak_memory_bytes,
    "versions": step.compilation.versions,
  }


def as_text(results: Sequence[Trial]) -> str:
  """Returns the table for a terminal."""
  request = results[0].request
  data = request.experiment.data
  chosen = list(fastest(results).values())
  rows = [
    (
      trial.request.experiment.model.variant,
      trial.way,
      *(("refused", "", "") if trial.step is None else _cells(trial.step)),
      "*" if trial in chosen else "",
      "yes" if trial.is_configured else "",
    )
    for trial in results
  ]
  columns = (
    "variant", "saves memory by", "HBM GiB", "margin", "step ms, without overlap",
    "fastest that fits", "configured",
  )  # fmt: skip
  return "\n".join(
    [
      f"{request.batch_per_chip} images a chip on {request.topology}, {data.train_pixels} px, "
      f"{data.num_classes:,} classes, kernels: {request.experiment.model.kernels}. Memory is what "
      "the compiler states (refused: the temporaries alone do not fit); times are estimated, not "
      "measured:",
      format_table(rows, columns),
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


def _cells(step: StepReport) -> tuple[str, str, str]:
  """Returns memory in GiB, margin in GiB and step time of a trial that compiled."""
  return (
    format_gib(step.compilation.hbm_bytes),
    format_gib(step.hbm_margin_bytes),
    step.time.milliseconds,
  )


def _define_flags() -> None:
  """Defines all flags."""
  flags.DEFINE_list("variants", ["F0", "F3", "F7", "F7+"], "Networks.")
  command_flags.define_topology("v4:4x4x8", " Its chips must divide 4096.")
  command_flags.define_kernels()
  command_flags.define_limits()
  command_flags.define_json()


def main(arguments: list[str]) -> None:
  """Compiles each trial and prints the table."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  command_flags.check_some("variants", values.variants)
  for variant in values.variants:
    command_flags.check_variant(variant, flag="variants")
  wanted = trials(values.variants, parse_topology(values.topology), values.kernels)
  results = [
    run(trial, **command_flags.limits())
    for trial in tqdm(wanted, desc="steps", leave=False, disable=None)
  ]
  command = f"python -m profiling.memory {shlex.join(sys.argv[1:])}"
  print_and_write(
    as_text(results), lambda: write_json("json", values.json, as_json(results, command))
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
