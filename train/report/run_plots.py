"""Plots of a run, from metrics.jsonl: loss, learning rate, accuracy."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.report.colors import BLUE, GREEN, VERMILION
from train.report.figure import add_legend, draw_line, log_axis, new_plot, whole_axis
from train.report.output import save_figures

PLOTS_FOLDER = "plots"

_TRAIN = {"label": "training", "color": BLUE, "linewidth": 1.2}
_EVALUATION = {"label": "held-out", "color": VERMILION, "marker": "o", "markersize": 4}
_EMA = {"label": "held-out, moving average", "color": GREEN, "marker": "s", "markersize": 4}

_Records = Sequence[Mapping[str, Any]]


def write_plots(
  records: Sequence[Mapping[str, Any]], workdir: str, *, title: str
) -> list[pathlib.Path]:
  """Writes loss.png, learning_rate.png and accuracy.png to the folder `plots` of the workdir.

  A plot without any records is left out.

  Args:
    records: records of metrics.jsonl, as `train.run.records.metrics.read_metrics` returns them.
    workdir: folder of the run.
    title: name of the run, shown above each plot.

  Returns:
    The files that were written.

  Raises:
    UserError: a plot cannot be written.
  """
  train = [record for record in records if record["kind"] == "train"]
  evaluation = [r for r in records if r["kind"] == "evaluation" and not r.get("ema")]
  ema = [r for r in records if r["kind"] == "evaluation" and r.get("ema")]
  series = ((train, _TRAIN), (evaluation, _EVALUATION), (ema, _EMA))

  loss, axes = _over_steps(title, "loss (nats)")
  _draw(axes, "loss", series)
  # Logarithmic, because a loss falls by ever smaller amounts.
  log_axis(axes.yaxis)

  learning_rate, axes = _over_steps(title, "learning rate")
  _draw(axes, "learning_rate", ((train, _TRAIN),))
  axes.set_ylim(bottom=0)

  accuracy, axes = _over_steps(title, "accuracy (%)")
  _draw(axes, "top1", series, percent=True, suffix=", top-1")
  _draw(axes, "top5", series, percent=True, suffix=", top-5", linestyle="--")

  figures = {"loss": loss, "learning_rate": learning_rate, "accuracy": accuracy}
  for figure in figures.values():
    if len(figure.axes[0].lines) > 1:
      add_legend(figure)
  folder = pathlib.Path(workdir) / PLOTS_FOLDER
  return save_figures(
    f"plots in {folder}",
    folder,
    {name: figure if figure.axes[0].lines else None for name, figure in figures.items()},
  )


def _over_steps(title: str, quantity: str) -> tuple[Figure, Axes]:
  figure, axes = new_plot(title, "step", quantity)
  whole_axis(axes.xaxis)
  return figure, axes


def _draw(
  axes: Axes,
  name: str,
  series: Sequence[tuple[_Records, Mapping[str, Any]]],
  *,
  percent: bool = False,
  suffix: str = "",
  **style: Any,
) -> None:
  for records, own_style in series:
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
      steps, values = zip(*points, strict=True)
      factor = 100 if percent else 1
      label = own_style["label"] + suffix
      draw_line(
        axes, steps, [factor * value for value in values], **{**own_style, **style, "label": label}
      )
