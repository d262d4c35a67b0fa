r"""Estimates what one batch costs on slices of 4 to 1024 chips: memory, collectives, efficiency.

    python -m profiling.slices [--variants=F3,F7+] [--slices=v4:2x2x1,v4:4x4x4,v4:8x8x16] \
        [--kernels=pallas --kernels=reference] [--json=OUT] [--plot=PNG]

Compiles the step of `train/configs/jft_pretrain.py`, with its batch of 4096 images, for each slice
(extra `tpu`; half an hour on two cores; five minutes the second time, to read the kernels'
schedules). Every step time printed is estimated from the compiler's schedule, not measured.
"""

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.request import StepRequest
from profiling.compile.topology import parse_topology
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.paper_runs import pretraining_experiment
from profiling.estimate.report import MFU_DEFINITION, StepReport, report, request_as_json
from profiling.estimate.step_time import RULES
from train.report.colors import BLUE, GRAY, GREEN, ORANGE, PINK, SKY_BLUE, VERMILION
from train.report.output import print_and_write, save_figure, write_json
from train.report.table import format_table
from train.report.units import format_gib, format_size

if TYPE_CHECKING:
  from matplotlib.figure import Figure

EFFICIENCY_DEFINITION = (
  "images/s/chip over the fastest on the smallest slice, with collectives after everything else; "
  "in parentheses the same with collectives beside everything else"
)


def requests(
  variants: Iterable[str], slices: Iterable[str], kernels: Iterable[str]
) -> list[StepRequest]:
  """Returns the steps to compile: each variant on each slice, from the smallest slice on.

  Args:
    variants: names of networks.
    slices: names of slices.
    kernels: "reference", "pallas" or both; each is a step of its own.

  Raises:
    UserError: a slice's chips do not divide the batch, or there is no such slice.
  """
  topologies = sorted(map(parse_topology, slices), key=lambda topology: topology.chips)
  return [
    StepRequest(
      experiment=pretraining_experiment(variant, kernels_, chips=topology.chips),
      topology=topology.name,
    )
    for variant in variants
    for topology in topologies
    for kernels_ in kernels
  ]


def fastest(steps: Iterable[StepReport]) -> dict[tuple[str, str], StepReport]:
  """Returns the fastest of the steps that fit, by variant and topology."""
  found: dict[tuple[str, str], StepReport] = {}
  for step in steps:
    key = step.request.experiment.model.variant, step.request.topology
    if step.fits and (key not in found or step.time.seconds < found[key].time.seconds):
      found[key] = step
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
  """The efficiency of a step relative to a step on another slice.

  Attributes:
    collectives_after: ratio of images/s/chip where nothing runs beside collectives.
    collectives_beside: the same ratio where everything runs beside them, so that a step takes the
      longer of the two.
  """

  collectives_after: float
  collectives_beside: float


def efficiency(step: StepReport, base: StepReport) -> Efficiency:
  """Returns the efficiency of `step` relative to `base`."""
  images = step.request.batch_per_chip / base.request.batch_per_chip
  return Efficiency(
    collectives_after=images
    * base.time.seconds_without_overlap
    / step.time.seconds_without_overlap,
    collectives_beside=images * _seconds_beside(base) / _seconds_beside(step),
  )


def _seconds_beside(step: StepReport) -> float:
  """Returns the time of a step whose collectives run beside everything else."""
  return max(step.time.compute_seconds, step.time.collective_seconds)


def efficiencies(steps: Sequence[StepReport]) -> list[Efficiency | None]:
  """Returns each step's efficiency relative to the fastest of its variant on the smallest slice.

  The efficiency is None if no step of the variant fits there.
  """
  smallest = min((step.topology for step in steps), key=lambda topology: topology.chips).name
  bases = fastest(steps)
  return [
    efficiency(step, base)
    if (base := bases.get((step.request.experiment.model.variant, smallest)))
    else None
    for step in steps
  ]


def as_json(steps: Sequence[StepReport], command: str) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  chosen = list(fastest(steps).values())
  return {
    "command": command,
    "what": "estimated from the compiler's schedule, not measured; compiling was measured",
    "rules": RULES,
    "efficiency_definition": EFFICIENCY_DEFINITION,
    "mfu_definition": MFU_DEFINITION,
    "error_bars": error_bars_json(),
    "versions": steps[0].compilation.versions,
    "steps": [
      {
        **request_as_json(step.request),
        "chips": step.topology.chips,
        "hbm_bytes": step.compilation.hbm_bytes,
        "hbm_margin_bytes": step.hbm_margin_bytes,
        "lower_seconds": step.compilation.lower_seconds,
        "compile_seconds": step.compilation.compile_seconds,
        "compiler_peak_memory_bytes": step.compilation.peak_memory_bytes,
        "compute_seconds": step.time.compute_seconds,
        "optimizer_seconds": step.time.by("part").get(("optimizer",), 0.0),
        "collective_bytes": step.time.collective_bytes,
        **step.time.as_json(),
        "images_per_second_per_chip": step.images_per_second_per_chip,
        "mfu": step.mfu,
        "efficiency": None if efficiency_ is None else dataclasses.asdict(efficiency_),
        "is_fastest_that_fits": step in chosen,
      }
      for step, efficiency_ in zip(steps, efficiencies(steps), strict=True)
    ],
  }


def as_text(steps: Sequence[StepReport]) -> str:
  """Returns the table for a terminal."""
  data = steps[0].request.experiment.data
  chosen = list(fastest(steps).values())
  rows = [
    (
      experiment.model.variant,
      f"{step.topology.chips}",
      experiment.model.kernels + (" *" if step in chosen else ""),
      experiment.model.block_execution + (" remat" if experiment.model.rematerialize else ""),
      f"{step.request.batch_per_chip} / {experiment.optimizer.gradient_accumulation}",
      f"{experiment.parallelism.parameter_shards}",
      f"{format_gib(step.compilation.hbm_bytes)}, {format_gib(step.hbm_margin_bytes)}",
      f"{step.compilation.lower_seconds + step.compilation.compile_seconds:.0f} s, "
      f"{format_size(step.compilation.peak_memory_bytes)}",
      f"{step.time.compute_seconds * 1e3:.1f}",
      f"{step.time.by('part').get(('optimizer',), 0.0) * 1e3:.1f}",
      f"{step.time.collective_bytes / 1e9:.2f} GB, {step.time.collective_seconds * 1e3:.1f}",
      f"{step.time.collective_seconds / step.time.compute_seconds:.1%}",
      step.time.milliseconds,
      f"{step.images_per_second_per_chip:.1f}",
      f"{step.mfu:.1%}",
      ""
      if efficiency_ is None
      else f"{efficiency_.collectives_after:.1%} ({efficiency_.collectives_beside:.1%})",
    )
    for step, efficiency_ in zip(steps, efficiencies(steps), strict=True)
    for experiment in [step.request.experiment]
  ]
  columns = (
    "variant", "chips", "kernels", "blocks", "images a chip / parts", "shards", "HBM GiB, margin",
    "compiling", "compute ms", "of it optimizer", "collectives, ms", "of compute",
    "step ms, without overlap", "images/s/chip", "MFU", "efficiency",
  )  # fmt: skip
  return "\n".join(
    [
      f"Batch {data.batch_size}, {data.train_pixels} px, {data.num_classes:,} classes. Step times "
      "are estimated, not measured; compiling is measured; *: the fastest that fits.",
      format_table(rows, columns),
      f"Efficiency: {EFFICIENCY_DEFINITION}.",
      f"MFU: {MFU_DEFINITION}.",
      f"Rules: {RULES}.",
      f"{error_bar_text()}. The links' latency is not in the estimate.",
    ]
  )


# From Okabe and Ito's palette, which people with any color vision tell apart.
_COLORS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY_BLUE)


def draw(steps: Sequence[StepReport]) -> "Figure":
  """Plots the efficiency of the fastest step that fits by chips, as a band of its two kinds."""
  # Needed for --plot only.
  from train.report.figure import add_legend, log_axis_at, new_plot

  batch = steps[0].request.experiment.data.batch_size
  figure, axes = new_plot(
    f"One batch of {batch} images by slice",
    "TPU-v4 chips (numbers: images/s/chip)",
    "efficiency, estimated",
    inches=(7, 4.5),
  )
  chosen = list(fastest(steps).values())
  found: dict[str, list[tuple[StepReport, Efficiency]]] = {}
  for step, efficiency_ in zip(steps, efficiencies(steps), strict=True):
    if step in chosen and efficiency_ is not None:
      found.setdefault(step.request.experiment.model.variant, []).append((step, efficiency_))
  for index, (variant, points) in enumerate(found.items()):
    color = _COLORS[index % len(_COLORS)]
    chips = [step.topology.chips for step, _ in points]
    after = [efficiency_.collectives_after for _, efficiency_ in points]
    beside = [efficiency_.collectives_beside for _, efficiency_ in points]
    axes.plot(chips, after, "o-", color=color, linewidth=1.2, markersize=4, label=variant)
    axes.plot(chips, beside, "--", color=color, linewidth=0.8)
    axes.fill_between(chips, after, beside, color=color, alpha=0.12, linewidth=0)
    for (step, _), height in zip(points, after, strict=True):
      axes.annotate(
        f"{step.images_per_second_per_chip:.0f}",
        (step.topology.chips, height),
        textcoords="offset points",
        # Lines are close to each other, so numbers are below one line and above the next.
        xytext=(0, 7 if index % 2 else -13),
        ha="center",
        fontsize=7,
        color=color,
      )
  axes.plot([], [], "-", color=GRAY, label="collectives after everything else")
  axes.plot([], [], "--", color=GRAY, linewidth=0.8, label="collectives beside it")
  log_axis_at(axes.xaxis, (step.topology.chips for step in steps))
  axes.set_ylim(0, 1.1)
  axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
  add_legend(figure)
  return figure


def _define_flags() -> None:
  """Defines all flags."""
  flags.DEFINE_list("variants", ["F3", "F7+"], "Networks.")
  flags.DEFINE_list(
    "slices", ["v4:2x2x1", "v4:4x4x4", "v4:8x8x16"], "Slices whose chips divide 4096."
  )
  flags.DEFINE_multi_enum(
    "kernels", ["pallas"], ["reference", "pallas"], "How the ops are computed; may be repeated."
  )
  command_flags.define_limits()
  command_flags.define_json()
  command_flags.define_plot()


def main(arguments: list[str]) -> None:
  """Compiles for each slice, prints the table and writes what the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  for flag in ("variants", "slices"):
    command_flags.check_some(flag, values[flag].value)
  for variant in values.variants:
    command_flags.check_variant(variant, flag="variants")
  wanted = requests(values.variants, values.slices, values.kernels)
  steps = [
    report(request, **command_flags.limits())
    for request in tqdm(wanted, desc="steps", leave=False, disable=None)
  ]
  command = f"python -m profiling.slices {shlex.join(sys.argv[1:])}"
  print_and_write(
    as_text(steps),
    lambda: write_json("json", values.json, as_json(steps, command)),
    lambda: save_figure("plot", values.plot, lambda: draw(steps)),
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
