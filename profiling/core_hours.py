r"""What pre-training and fine-tuning cost in TPU-v4 core-hours, beside what paper A published.

    python -m profiling.core_hours [--topology=v4:4x4x8] [--kernels=pallas] \
        [--block_execution=unrolled] [--gradient_dtype=bfloat16] [--json=OUT] [--plot=PNG]

Compiles the training step of each of the paper's six networks for the slice (extra `tpu`; half an
hour on two cores, instant the second time) and multiplies. Every core-hour of this project that is
printed is estimated from the compiler's schedule, not measured. A core is a TensorCore: two a chip.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags
from matplotlib.figure import Figure
from tqdm import tqdm

import train.configs
from nfnet.command_line import refuse_arguments, run_main
from profiling.compile.compilation import MEMORY_LIMIT_BYTES
from profiling.compile.request import StepRequest, request_for
from profiling.compile.topology import Topology, parse_topology
from profiling.estimate import published
from profiling.estimate.error_bar import error_bar_text, error_bars, error_bars_json
from profiling.estimate.step_time import RULES
from profiling.step import StepReport, report
from train.config.files import load_experiment
from train.report.figure import COLORS, GRAY, new_plot
from train.report.output import save_figure, write_json
from train.report.table import format_table
from train.report.units import format_gib

# What is costed is what these configurations train.
CONFIGS = pathlib.Path(train.configs.__file__).parent
_FINETUNING_CONFIG = "imagenet_finetune.py:variant=F7+"
_FINETUNING_IMAGES = 50 * 1_281_167
_PLAN_CHIPS = (64, 128, 256, 512, 1024)
_SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimates:
  """Steps of all networks on one slice.

  Attributes:
    pretraining: by variant.
    finetuning: of F7+ at 384 px, with SAM.
  """

  pretraining: dict[str, StepReport]
  finetuning: StepReport

  def core_hours(self, variant: str, epochs: float) -> float:
    """Of pre-training, without evaluation, input and restarts."""
    millions = epochs * published.PRETRAINING_IMAGES_PER_EPOCH / 1e6
    return millions * self.pretraining[variant].core_hours_per_million_images

  @property
  def finetuning_core_hours(self) -> float:
    """Of 50 epochs of ImageNet."""
    millions = _FINETUNING_IMAGES / 1e6
    return millions * self.finetuning.core_hours_per_million_images


def requests(topology: Topology, kernels: str, **changes: Any) -> dict[str, StepRequest]:
  """The steps to compile: each of the paper's variants, and "finetuning".

  Args:
    topology: of the slice.
    kernels: "reference" or "pallas".
    **changes: fields of all requests that are to differ from what `request_for` says.

  Raises:
    UserError: the batches do not divide among the chips.
  """
  pretraining = {
    variant: request_for(
      load_experiment(str(CONFIGS / f"jft_pretrain.py:variant={variant}")), topology, kernels
    )
    for variant in published.VARIANTS
  }
  finetuning = request_for(load_experiment(str(CONFIGS / _FINETUNING_CONFIG)), topology, kernels)
  steps = {**pretraining, "finetuning": finetuning}
  return {name: dataclasses.replace(request, **changes) for name, request in steps.items()}


def estimate_all(
  topology: Topology,
  kernels: str,
  *,
  memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
  **changes: Any,
) -> Estimates:
  """Compiles every step, one after the other.

  Args:
    topology: of the slice.
    kernels: "reference" or "pallas".
    memory_limit_bytes: for the compiler.
    **changes: see `requests`.

  Raises:
    UserError: a step cannot be compiled.
  """
  steps = requests(topology, kernels, **changes)
  reports = {
    name: report(request, memory_limit_bytes=memory_limit_bytes)
    for name, request in tqdm(steps.items(), desc="networks", leave=False, disable=None)
  }
  finetuning = reports.pop("finetuning")
  return Estimates(pretraining=reports, finetuning=finetuning)


def as_json(estimates: Estimates) -> dict[str, Any]:
  """Everything that is printed, with what it was made from."""
  first = estimates.finetuning
  return {
    "what": "estimated from the compiler's schedule, not measured",
    "rules": RULES,
    "topology": first.request.topology,
    "kernels": first.request.kernels,
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
        **dataclasses.asdict(step.request),
        "step_seconds": step.time.seconds,
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
  """For a terminal."""
  finetuning = estimates.finetuning.request
  pretraining = next(iter(estimates.pretraining.values())).request
  batch = pretraining.batch_per_chip * estimates.finetuning.topology.chips
  published_hours = {(run.name, run.epochs): run.compute for run in published.RUNS}
  speed = [
    (
      variant,
      f"{step.request.batch_per_chip}" + (" remat" if step.request.rematerialize else ""),
      f"{step.time.seconds * 1e3:.1f}",
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
      f"Steps on {pretraining.topology}, kernels: {pretraining.kernels}; batch {batch}, "
      f"{pretraining.pixels} px, {pretraining.num_classes:,} classes. Estimated, not measured:",
      format_table(
        speed, ("variant", "images a chip", "step ms", "images/s/chip", "MFU", "HBM GiB")
      ),
      "",
      "Core-hours of pre-training by epochs of 4e9 images: estimated / published = ratio",
      format_table(hours, ("variant", *(f"{epochs:g}" for epochs in published.EPOCHS))),
      "",
      f"Fine-tuning of {finetuning.variant}, 50 epochs of ImageNet at {finetuning.pixels} px, SAM"
      + ("" if estimates.finetuning.fits else ", which DOES NOT FIT")
      + f": estimated {estimates.finetuning_core_hours:,.0f} core-hours, published "
      f"{published.FINETUNING_CORE_HOURS:,}",
      "",
      "Days for one epoch by chips, were each chip as fast as on this slice:",
      format_table(plan, ("variant", *map(str, _PLAN_CHIPS))),
      f"Rules: {RULES}.",
      f"{error_bar_text()}.",
    ]
  )


_COLORS = dict(zip(published.VARIANTS, COLORS, strict=False))


def draw(estimates: Estimates) -> Figure:
  """Published losses against core-hours: the published ones, and those of this project."""
  figure, axes = new_plot(
    "NFNets pre-trained on JFT-4B",
    "TPU-v4 core-hours",
    "held-out loss as published (nats)",
    inches=(8, 5),
  )
  # The one of the two that compares equal programs.
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
  axes.set_xscale("log")
  axes.legend(frameon=False, ncols=2)
  return figure


def _define_flags() -> None:
  flags.DEFINE_string("topology", "v4:4x4x8", "Slice; must divide batches of 4096 and 2048.")
  flags.DEFINE_enum("kernels", "reference", ["reference", "pallas"], "How the ops are computed.")
  flags.DEFINE_enum(
    "block_execution",
    None,
    ["scan", "unrolled"],
    "Equal blocks as a loop or written out; default: written out for kernels, up to F3's 48.",
  )
  flags.DEFINE_enum(
    "gradient_dtype",
    None,
    ["bfloat16", "float32"],
    "In which gradients travel between chips; default: as configured.",
  )
  flags.DEFINE_float("memory_limit_gb", MEMORY_LIMIT_BYTES / 1e9, "For the compiler.")
  flags.DEFINE_string("json", None, "Write the figures to this file too.")
  flags.DEFINE_string("plot", None, "Write the picture to this PNG file.")


def main(arguments: list[str]) -> None:
  """Prints the tables and writes what the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  changes = {
    name: value
    for name in ("block_execution", "gradient_dtype")
    if (value := getattr(values, name)) is not None
  }
  estimates = estimate_all(
    parse_topology(values.topology),
    values.kernels,
    memory_limit_bytes=int(values.memory_limit_gb * 1e9),
    **changes,
  )
  print(as_text(estimates))
  write_json("json", values.json, as_json(estimates))
  save_figure("plot", values.plot, draw(estimates))


if __name__ == "__main__":
  _define_flags()
  run_main(main)
