r"""Plots ImageNet error against pre-training core-hours, for NFNets and vision transformers.

    python -m profiling.both_families --plot=PNG [--json=OUT]

This is paper A's plot of error against compute, with the published core-hours and, beside them,
this project's estimates for the same runs: NFNets with plain-JAX ops and with Pallas
kernels, and ViTs with plain-JAX ops. The command compiles nothing. It reads what
`profiling.core_hours` and `profiling.vit` have stored in profiling/results. All
errors are the published ones.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.estimate import published
from profiling.estimate.error_bar import error_bar_text, error_bars
from profiling.estimate.stored import read_stored
from train.published_runs import PAPER_A_FINETUNED, PAPER_A_NFNETS
from train.report.colors import COLORS, GRAY, PINK
from train.report.output import print_and_write, save_figure, write_json
from train.report.table import format_table
from train.scaling.run_table import Run, read_runs

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """Describes a pre-trained and fine-tuned network.

  Attributes:
    name: name of the network.
    epochs: number of pre-training epochs of 4e9 images; None for ViTs.
    error_percent: published top-1 error on ImageNet.
    published_core_hours: published TPU-v4 core-hours of pre-training.
    plain_core_hours: core-hours estimated for this project with plain-JAX ops; None where the
      number of images seen is not known.
    kernel_core_hours: core-hours estimated with Pallas kernels; None for ViTs, which have no
      kernels here.
  """

  name: str
  epochs: float | None
  error_percent: float
  published_core_hours: float
  plain_core_hours: float | None
  kernel_core_hours: float | None


def read_points() -> list[Point]:
  """Returns all networks whose ImageNet error paper A plots, NFNets first."""
  plain = _nfnet_hours("core_hours_reference.json")
  kernels = _nfnet_hours("core_hours_pallas.json")
  transformers = {
    step["model"]: step["estimated_core_hours"] for step in read_stored("vit.json")["steps"]
  }
  nfnets = [run for run in read_runs([PAPER_A_NFNETS]).runs if run.top1_error_percent is not None]
  others = [run for run in read_runs([PAPER_A_FINETUNED]).runs if run.name in transformers]
  return [
    *(
      _point(run, plain=run.epochs * plain[run.name], kernels=run.epochs * kernels[run.name])
      for run in nfnets
    ),
    *(_point(run, plain=transformers[run.name], kernels=None) for run in others),
  ]


def _point(run: Run, *, plain: float | None, kernels: float | None) -> Point:
  return Point(
    name=run.name,
    epochs=run.epochs,
    error_percent=run.top1_error_percent,
    published_core_hours=run.compute,
    plain_core_hours=plain,
    kernel_core_hours=kernels,
  )


def _nfnet_hours(name: str) -> dict[str, float]:
  """Reads the core-hours of one epoch, by variant."""
  return {
    run["variant"]: run["estimated_core_hours"]
    for run in read_stored(name)["pretraining"]
    if run["epochs"] == 1
  }


def as_text(points: Sequence[Point]) -> str:
  """Formats the points as a table for a terminal."""
  rows = [
    (
      point.name,
      "" if point.epochs is None else f"{point.epochs:g}",
      f"{point.error_percent:.2f}",
      *(
        "" if hours is None else f"{hours:,.0f}"
        for hours in (
          point.published_core_hours,
          point.plain_core_hours,
          point.kernel_core_hours,
        )
      ),
    )
    for point in points
  ]
  header = ("network", "epochs", "ImageNet error %", "published", "plain JAX", "kernels")
  return "\n".join(
    [
      "TPU-v4 core-hours of pre-training, as published and as estimated for this project (not "
      "measured):",
      format_table(rows, header),
      f"{error_bar_text()}.",
    ]
  )


def draw(points: Sequence[Point]) -> "Figure":
  """Plots error against core-hours; triangles are ViTs, circles are NFNets."""
  # Needed for --plot only.
  from train.report.figure import add_legend, log_axis, new_plot

  figure, axes = new_plot(
    "NFNets and vision transformers after fine-tuning on ImageNet",
    "TPU-v4 core-hours of pre-training",
    "top-1 error as published (%)",
    inches=(8.5, 5.5),
  )
  for (name, own), color in zip(_by_name(points), _colors(points), strict=True):
    marker = "o" if own[0].epochs is not None else "^"
    errors = [point.error_percent for point in own]
    style = {"color": color, "linewidth": 1.0, "markersize": 5}
    axes.plot(
      [point.published_core_hours for point in own], errors, f"{marker}-", label=name, **style
    )
    if own[0].plain_core_hours is not None:
      plain = [point.plain_core_hours for point in own]
      axes.plot(plain, errors, f"{marker}:", **style, markerfacecolor="none")
    if own[0].kernel_core_hours is not None:
      axes.plot([point.kernel_core_hours for point in own], errors, "x--", **style)
  gray = {"color": GRAY, "markersize": 5}
  axes.plot([], [], "o-", label="as published", **gray)
  axes.plot([], [], "o:", label="estimated, plain JAX", markerfacecolor="none", **gray)
  axes.plot([], [], "x--", label="estimated, Pallas kernels", **gray)
  bar = error_bars()["v3"]
  axes.plot(
    [], [], " ", label=f"(real steps took {bar.lowest:.2f} to {bar.highest:.2f} of an estimate)"
  )
  log_axis(axes.xaxis)
  add_legend(figure)
  return figure


def _by_name(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
  for name in dict.fromkeys(point.name for point in points):
    yield name, [point for point in points if point.name == name]


def _colors(points: Sequence[Point]) -> list[str]:
  """Returns one color for each network; NFNets have those of `profiling.core_hours`."""
  nfnets = dict(zip(published.VARIANTS, COLORS, strict=False))
  others = iter((PINK, "#882255", "#44AA99"))
  return [nfnets.get(name) or next(others) for name, _ in _by_name(points)]


def main(arguments: list[str]) -> None:
  """Prints the table and writes what the flags ask for."""
  refuse_arguments(arguments)
  points = read_points()
  figures = [dataclasses.asdict(point) for point in points]
  print_and_write(
    as_text(points),
    lambda: write_json("json", flags.FLAGS.json, figures),
    lambda: save_figure("plot", flags.FLAGS.plot, lambda: draw(points)),
  )


if __name__ == "__main__":
  command_flags.define_json()
  command_flags.define_plot()
  run_main(main)
