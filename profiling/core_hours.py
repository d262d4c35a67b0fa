r"""Estimates what pre-training and fine-tuning cost in TPU-v4 core-hours, beside paper A's figures.

    python -m profiling.core_hours [--topology=v4:4x4x8] [--kernels=pallas] \
        [--block_execution=unrolled] [--gradient_dtype=bfloat16] [--json=OUT] [--plot=PNG]

Compiles the step with which `train/configs` trains each of the paper's six networks (extra `tpu`;
half an hour on two cores, with kernels three hours and 31 GB of memory with swap; minutes the
second time) and multiplies its time by the number of steps.
The flags set only the slice and how the step is executed. Every core-hour printed for this project
is estimated from the compiler's schedule, not measured. A core is a TensorCore; a chip has two.
"""

from typing import TYPE_CHECKING, Any

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.compile.topology import parse_topology
from profiling.estimate import published
from profiling.estimate.error_bar import error_bar_text, error_bars, error_bars_json
from profiling.estimate.paper_runs import Estimates, estimate_all, requests
from profiling.estimate.report import request_as_json
from profiling.estimate.step_time import RULES
from train.report.colors import COLORS, GRAY
from train.report.output import print_and_write, save_figure, write_json
from train.report.table import format_table
from train.report.units import format_gib

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_PLAN_CHIPS = (64, 128, 256, 512, 1024)
_SECONDS_PER_DAY = 86_400


def as_json(estimates: Estimates) -> dict[str, Any]:
  """Returns everything that is printed, and the figures from which it follows."""
  first = estimates.finetuning
  return {
    "what": "estimated from the compiler's schedule, not measured",
    "rules": RULES,
    "topology": first.request.topology,
    "kernels": first.request.experiment.model.kernels,
    "error_bars": error_bars_json(),
    "versions": first.compilation.versions,
    "pretraining": [
      {
        "variant": run.name,
        "epochs": run.epochs,
        "estimated_core_hours": estimates.core_hours(run.name, run.epochs),
        "published_core_hours": run.compute,
        "published_loss_nats": run.loss_nats,
      }
      for run in published.RUNS
    ],
    "steps": {
      name: {
        **request_as_json(step.request),
        **step.time.as_json(),
        "images_per_second_per_chip": step.images_per_second_per_chip,
        "mfu": step.mfu,
        "hbm_bytes": step.compilation.hbm_bytes,
        "fits": step.fits,
      }
      for name, step in {**estimates.pretraining, "finetuning": estimates.finetuning}.items()
    },
    "finetuning": {
      "estimated_core_hours": estimates.finetuning_core_hours,
      "published_core_hours": published.FINETUNING_CORE_HOURS,
    },
  }


def as_text(estimates: Estimates) -> str:
  """Returns the tables for a terminal."""
  finetuning = estimates.finetuning.request.experiment
  pretraining = next(iter(estimates.pretraining.values())).request.experiment
  published_hours = {(run.name, run.epochs): run.compute for run in published.RUNS}
  speed = [
    (
      variant,
      f"{step.request.batch_per_chip}"
      + (" remat" if step.request.experiment.model.rematerialize else ""),
      step.time.milliseconds,
      f"{step.images_per_second_per_chip:.0f}",
      f"{step.mfu:.1%}",
      format_gib(step.compilation.hbm_bytes) + ("" if step.fits else " DOES NOT FIT"),
    )
    for variant, step in estimates.pretraining.items()
  ]
  hours = [
    (
      variant,
      *(
        f"{estimates.core_hours(variant, epochs):,.0f} / "
        f"{published_hours[variant, epochs]:,.0f} = "
        f"{estimates.core_hours(variant, epochs) / published_hours[variant, epochs]:.2f}"
        for epochs in published.EPOCHS
      ),
    )
    for variant in published.VARIANTS
  ]
  plan = [
    (
      variant,
      *(
        f"{published.PRETRAINING_IMAGES_PER_EPOCH / (speed_of_chip * chips) / _SECONDS_PER_DAY:.1f}"
        for chips in _PLAN_CHIPS
      ),
    )
    for variant, step in estimates.pretraining.items()
    for speed_of_chip in [step.images_per_second_per_chip]
  ]
  return "\n".join(
    [
      f"Steps on {estimates.finetuning.request.topology}, kernels: {pretraining.model.kernels}; "
      f"batch {pretraining.data.batch_size}, {pretraining.data.train_pixels} px, "
      f"{pretraining.data.num_classes:,} classes. Estimated, not measured:",
      format_table(
        speed,
        ("variant", "images a chip", "step ms, without overlap", "images/s/chip", "MFU", "HBM GiB"),
      ),
      "",
      "Core-hours of pre-training by epochs of 4e9 images: estimated / published = ratio",
      format_table(hours, ("variant", *(f"{epochs:g}" for epochs in published.EPOCHS))),
      "",
      f"Fine-tuning of {finetuning.model.variant}, 50 epochs of ImageNet at "
      f"{finetuning.data.train_pixels} px, SAM"
      + ("" if estimates.finetuning.fits else ", which DOES NOT FIT")
      + f": estimated {estimates.finetuning_core_hours:,.0f} core-hours, published "
      f"{published.FINETUNING_CORE_HOURS:,}",
      "",
      "Days for one epoch by chips, if each chip is as fast as on this slice:",
      format_table(plan, ("variant", *map(str, _PLAN_CHIPS))),
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


_COLORS = dict(zip(published.VARIANTS, COLORS, strict=False))


def draw(estimates: Estimates) -> "Figure":
  """Plots published losses against the published core-hours and against this project's."""
  # Needed for --plot only.
  from train.report.figure import add_legend, log_axis, new_plot

  figure, axes = new_plot(
    "NFNets pre-trained on JFT-4B",
    "TPU-v4 core-hours",
    "held-out loss as published (nats)",
    inches=(8, 5),
  )
  # Of the two error bars, this one compares equal programs.
  bar = error_bars()["v3"]
  for variant in published.VARIANTS:
    runs = [run for run in published.RUNS if run.name == variant]
    losses = [run.loss_nats for run in runs]
    style = {"color": _COLORS[variant], "linewidth": 1.2, "markersize": 4}
    axes.plot([run.compute for run in runs], losses, "o-", label=variant, **style)
    hours = [estimates.core_hours(variant, run.epochs) for run in runs]
    axes.plot(hours, losses, "x--", **{**style, "linewidth": 0.8})
    axes.hlines(
      losses,
      [bar.lowest * estimate for estimate in hours],
      [bar.highest * estimate for estimate in hours],
      color=_COLORS[variant],
      linewidth=0.8,
    )
  axes.plot([], [], "o-", color=GRAY, label="cost as published")
  axes.plot([], [], "x--", color=GRAY, label="cost estimated for this project")
  axes.plot(
    [],
    [],
    "-",
    color=GRAY,
    linewidth=0.8,
    label=f"what real steps took of an estimate: {bar.lowest:.2f} to {bar.highest:.2f}",
  )
  log_axis(axes.xaxis)
  add_legend(figure)
  return figure


def _define_flags() -> None:
  """Defines all flags."""
  command_flags.define_topology("v4:4x4x8", " Its chips must divide batches of 4096 and 2048.")
  command_flags.define_kernels()
  command_flags.define_block_execution()
  command_flags.define_gradient_dtype()
  command_flags.define_limits()
  command_flags.define_json()
  command_flags.define_plot()


def main(arguments: list[str]) -> None:
  """Prints the tables and writes what the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  changes = {
    section: {field: value}
    for section, field in (("model", "block_execution"), ("parallelism", "gradient_dtype"))
    if (value := getattr(values, field)) is not None
  }
  steps = requests(parse_topology(values.topology), values.kernels, **changes)
  estimates = estimate_all(steps, **command_flags.limits())
  print_and_write(
    as_text(estimates),
    lambda: write_json("json", values.json, as_json(estimates)),
    lambda: save_figure("plot", values.plot, lambda: draw(estimates)),
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
