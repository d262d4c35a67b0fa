"""Plots of an analysis: losses, errors after fine-tuning, learning rates, compute optima."""

import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.report.colors import COLORS, GRAY, PINK
from train.report.figure import add_legend, log_axis, log_axis_at, new_plot, plain_text
from train.report.output import save_figures
from train.scaling.analysis import Analysis
from train.scaling.analysis_text import OPTIMUM_LABELS
from train.scaling.laws.law_set import FORMS, OPTIMA, WAYS
from train.scaling.run_table import Run, best_trials

# With the colors, these tell more networks apart than the colors alone could.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COMPUTE_LABELS = {
  "compute_core_hours": "training compute (core-hours)",
  "compute_flops": "training compute (FLOP)",
}
_DRAWN_FORMS = {"frontier": "--", "frontier_irreducible": ":"}
_LINE_POINTS = 100


def write_plots(folder: str, analysis: Analysis) -> list[pathlib.Path]:
  """Writes a PNG file for each plot that has anything to show.

  Args:
    folder: folder of the plots, created if needed.
    analysis: results to draw.

  Returns:
    Paths of the files written.

  Raises:
    UserError: the plots cannot be written.
  """
  plots = {
    "loss_against_compute": _loss(analysis),
    "finetuning_error_against_compute": draw_finetuning_error(analysis),
    "learning_rate": _learning_rate(analysis),
    "optimal_size_and_epochs": _optima(analysis),
  }
  return save_figures(f"--plots={folder}", folder, plots)


def _loss(analysis: Analysis) -> Figure:
  """Draws held-out loss with a line for each network, and the laws of the frontier."""
  figure, axes = _over_compute(analysis, "Held-out loss against compute", "held-out loss (nats)")
  _draw_networks(axes, analysis, analysis.runs, lambda run: run.compute, lambda run: run.loss_nats)
  points = analysis.bootstrap.points
  compute = np.geomspace(
    points.compute.min(), max(points.compute.max(), *analysis.budgets), _LINE_POINTS
  )
  for form in FORMS:
    law = getattr(analysis.bootstrap.laws, form.field)
    if form.field in _DRAWN_FORMS and law is not None:
      style = {"color": GRAY, "linestyle": _DRAWN_FORMS[form.field], "linewidth": 1.2}
      axes.plot(compute, law.loss(compute), label=form.label, **style)
      for budget in analysis.budgets:
        _, interval = analysis.bootstrap.prediction(form, budget)
        if interval:
          # Shifted, because the intervals of two laws at one budget would hide each other.
          beside = budget * (1.03 if form.field == "frontier" else 1 / 1.03)
          axes.vlines(beside, *interval, linewidth=1.2, color=GRAY)
  if analysis.judgment is not None and analysis.judgment.flagged.any():
    flagged = points.take(analysis.judgment.flagged)
    ring = {"markersize": 11, "markerfacecolor": "none", "color": PINK}
    axes.plot(flagged.compute, flagged.loss, "o", label="outlier", **ring)
  _finish(figure)
  return figure


def draw_finetuning_error(analysis: Analysis) -> Figure | None:
  """Draws top-1 error after fine-tuning with a line for each network; None without such errors."""
  runs = best_trials(analysis.table.runs, "top1_error_percent")
  if not runs:
    return None
  figure, axes = _over_compute(
    analysis, "After fine-tuning, against pre-training compute", "top-1 error (%)"
  )
  _draw_networks(axes, analysis, runs, lambda run: run.compute, lambda run: run.top1_error_percent)
  _finish(figure)
  return figure


def _learning_rate(analysis: Analysis) -> Figure | None:
  """Draws the best learning rate against epochs; None if the table has no rates."""
  runs = [run for run in analysis.runs if run.learning_rate is not None]
  if not runs:
    return None
  quantity = "peak learning rate (lines moved apart by 2%)"
  figure, axes = new_plot("Learning rate of the best run", "epochs", quantity)
  # Rates lie on a grid, so curves would hide each other.
  shifts = {name: 1.02**index for index, name in enumerate(_names(runs))}
  _draw_networks(
    axes, analysis, runs, lambda run: run.epochs, lambda run: run.learning_rate * shifts[run.name]
  )
  log_axis_at(axes.xaxis, (run.epochs for run in runs))
  rates = [run.learning_rate for run in runs]
  log_axis_at(axes.yaxis, rates)
  axes.set_ylim(min(rates) / 1.3, max(rates) * 1.3)
  add_legend(figure)
  return figure


def _optima(analysis: Analysis) -> Figure | None:
  """Draws optimal size and epochs on two axes; None without optima.

  Decades have the same length on both axes, so that equal exponents are parallel lines.
  """
  bootstrap = analysis.bootstrap
  fields = [field for field in OPTIMA if getattr(bootstrap.laws, field) is not None]
  if not fields:
    return None
  figure, axes = _over_compute(analysis, "Compute-optimal size and epochs", "parameters (millions)")
  others = axes.twinx()
  others.set_ylabel("epochs")
  others.spines["top"].set_visible(False)
  colors = {"parameters": COLORS[4], "epochs": COLORS[5]}
  tried = bootstrap.points.compute
  compute = np.geomspace(tried.min(), max(tried.max(), *analysis.budgets), _LINE_POINTS)
  styles = dict(zip(OPTIMA, ("-", "--", ":"), strict=True))
  markers = dict(zip(WAYS, ("o", "x"), strict=True))
  for field in fields:
    law = getattr(bootstrap.laws, field)
    for name, own_axes, divisor in (("parameters", axes, 1e6), ("epochs", others, 1)):
      own_axes.plot(
        compute,
        getattr(law, name)(compute) / divisor,
        linestyle=styles[field],
        color=colors[name],
        linewidth=1.2,
      )
      if field in bootstrap.optima:
        found = bootstrap.optima[field]
        values = getattr(found, name) / divisor
        style = {"color": colors[name], "markersize": 3, "alpha": 0.7}
        own_axes.plot(found.compute, values, markers[field], **style)
    marker = markers[field] if field in bootstrap.optima else ""
    style = {"color": GRAY, "markersize": 3, "label": OPTIMUM_LABELS[field]}
    axes.plot([], [], f"{styles[field]}{marker}", **style)
  for name, own_axes in (("parameters", axes), ("epochs", others)):
    own_axes.yaxis.label.set_color(colors[name])
    own_axes.tick_params(axis="y", colors=colors[name])
    log_axis(own_axes.yaxis)
  _equal_decades(axes, others)
  _finish(figure)
  return figure


def _over_compute(analysis: Analysis, title: str, quantity: str) -> tuple[Figure, Axes]:
  """Returns an empty plot of a quantity against compute."""
  return new_plot(title, _COMPUTE_LABELS[analysis.table.compute_column], quantity)


def _finish(figure: Figure) -> None:
  """Makes the axes of a plot over compute logarithmic, and adds the legend."""
  log_axis(figure.axes[0].xaxis)
  log_axis(figure.axes[0].yaxis)
  add_legend(figure)


def _names(runs: Iterable[Run]) -> list[str]:
  """Returns the names of the networks in the order in which they first occur."""
  return list(dict.fromkeys(run.name for run in runs))


def _draw_networks(
  axes: Axes,
  analysis: Analysis,
  runs: Sequence[Run],
  x: Callable[[Run], float],
  y: Callable[[Run], float],
) -> None:
  """Draws a line for each network, in the same color and style in all plots."""
  for index, name in enumerate(_names(analysis.table.runs)):
    own = sorted((run for run in runs if run.name == name), key=x)
    style = {
      "color": COLORS[index % len(COLORS)],
      "marker": _MARKERS[index // len(COLORS) % len(_MARKERS)],
      "markersize": 4,
      "linestyle": "-" if len(own) > 1 else "",
      "linewidth": 1.2,
    }
    if own:
      axes.plot([x(run) for run in own], [y(run) for run in own], label=plain_text(name), **style)


def _equal_decades(one: Axes, other: Axes) -> None:
  """Gives both logarithmic axes the same number of decades."""
  limits = [np.log10(axes.get_ylim()) for axes in (one, other)]
  decades = max(high - low for low, high in limits)
  for axes, (low, high) in zip((one, other), limits, strict=True):
    middle = (low + high) / 2
    axes.set_ylim(10 ** (middle - decades / 2), 10 ** (middle + decades / 2))
