"""Pictures of what `train.scaling_law` found: losses, errors after fine-tuning, rates, optima."""

import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation

from train.report.figure import COLORS, GRAY, PINK, new_plot, plain_log_axis
from train.report.output import save_figures
from train.scaling.findings import Findings
from train.scaling.run_table import Run, best_trials
from train.scaling.study import FORMS, OPTIMA, WAYS
from train.scaling.text import OPTIMUM_LABELS

# With the colors, for more networks than there are of these.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COMPUTE_LABELS = {
  "compute_core_hours": "training compute (core-hours)",
  "compute_flops": "training compute (FLOP)",
}
_DRAWN_FORMS = {"frontier": "--", "frontier_irreducible": ":"}
_LINE_POINTS = 100


def write_plots(folder: str, findings: Findings) -> list[pathlib.Path]:
  """Writes the pictures that there is something to draw for.

  Args:
    folder: created if needed.
    findings: to draw.

  Returns:
    The files written.

  Raises:
    UserError: they cannot be written.
  """
  return save_figures(
    f"--plots={folder}",
    folder,
    {
      "loss_against_compute": _loss(findings),
      "finetuning_error_against_compute": draw_finetuning_error(findings),
      "learning_rate": _learning_rate(findings),
      "optimal_size_and_epochs": _optima(findings),
    },
  )


def _loss(findings: Findings) -> Figure:
  """Held-out loss, a line for each network, with the laws of the frontier."""
  figure, axes = _over_compute(findings, "Held-out loss against compute", "held-out loss (nats)")
  _draw_networks(axes, findings, findings.runs, lambda run: run.compute, lambda run: run.loss_nats)
  points = findings.study.points
  compute = np.geomspace(
    points.compute.min(), max(points.compute.max(), *findings.budgets), _LINE_POINTS
  )
  for form in FORMS:
    law = getattr(findings.study.laws, form.field)
    if form.field in _DRAWN_FORMS and law is not None:
      style = {"color": GRAY, "linestyle": _DRAWN_FORMS[form.field], "linewidth": 1.2}
      axes.plot(compute, law.loss(compute), label=form.label, **style)
      for budget in findings.budgets:
        _, interval = findings.study.prediction(form, budget)
        if interval:
          # Two laws at one budget would hide each other.
          beside = budget * (1.03 if form.field == "frontier" else 1 / 1.03)
          axes.vlines(beside, *interval, linewidth=1.2, color=GRAY)
  if findings.judgment is not None and findings.judgment.flagged.any():
    flagged = points.take(findings.judgment.flagged)
    ring = {"markersize": 11, "markerfacecolor": "none", "color": PINK}
    axes.plot(flagged.compute, flagged.loss, "o", label="outlier", **ring)
  plain_log_axis(axes.yaxis)
  axes.legend(frameon=False, ncols=2, fontsize="small")
  return figure


def draw_finetuning_error(findings: Findings) -> Figure | None:
  """Top-1 error after fine-tuning, a line for each network; None if there is none."""
  runs = best_trials(findings.table.runs, "top1_error_percent")
  if not runs:
    return None
  figure, axes = _over_compute(
    findings, "After fine-tuning, against pre-training compute", "top-1 error (%)"
  )
  _draw_networks(axes, findings, runs, lambda run: run.compute, lambda run: run.top1_error_percent)
  plain_log_axis(axes.yaxis)
  axes.legend(frameon=False, ncols=2, fontsize="small")
  return figure


def _learning_rate(findings: Findings) -> Figure | None:
  runs = [run for run in findings.runs if run.learning_rate is not None]
  if not runs:
    return None
  figure, axes = new_plot("Learning rate of the best run", "epochs", "peak learning rate")
  axes.set_xscale("log", base=2)
  axes.set_yscale("log", base=2)
  # Rates lie on a grid, so curves would hide each other: each is moved up by 2 %.
  shifts = {name: 1.02**index for index, name in enumerate(_names(runs))}
  _draw_networks(
    axes, findings, runs, lambda run: run.epochs, lambda run: run.learning_rate * shifts[run.name]
  )
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
  rates = sorted({run.learning_rate for run in runs})
  axes.set_yticks(rates)
  axes.set_ylim(rates[0] / 1.3, rates[-1] * 1.3)
  axes.legend(frameon=False, loc="lower left")
  return figure


def _optima(findings: Findings) -> Figure | None:
  """Size and epochs on two axes of equally long decades, so that equal rates are parallel lines."""
  study = findings.study
  fields = [field for field in OPTIMA if getattr(study.laws, field) is not None]
  if not fields:
    return None
  figure, axes = _over_compute(findings, "Compute-optimal size and epochs", "parameters (millions)")
  others = axes.twinx()
  others.set_yscale("log")
  others.set_ylabel("epochs")
  others.spines["top"].set_visible(False)
  colors = {"parameters": COLORS[4], "epochs": COLORS[5]}
  compute = np.geomspace(
    study.points.compute.min(), max(study.points.compute.max(), *findings.budgets), _LINE_POINTS
  )
  styles = dict(zip(OPTIMA, ("-", "--", ":"), strict=True))
  markers = dict(zip(WAYS, ("o", "x"), strict=True))
  for field in fields:
    law = getattr(study.laws, field)
    for name, own_axes, divisor in (("parameters", axes, 1e6), ("epochs", others, 1)):
      own_axes.plot(
        compute,
        getattr(law, name)(compute) / divisor,
        linestyle=styles[field],
        color=colors[name],
        linewidth=1.2,
      )
      if field in study.optima:
        found = study.optima[field]
        values = getattr(found, name) / divisor
        style = {"color": colors[name], "markersize": 3, "alpha": 0.7}
        own_axes.plot(found.compute, values, markers[field], **style)
    axes.plot([], [], styles[field], color=GRAY, label=OPTIMUM_LABELS[field])
  for name, own_axes in (("parameters", axes), ("epochs", others)):
    own_axes.yaxis.label.set_color(colors[name])
    own_axes.tick_params(axis="y", colors=colors[name])
    own_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  _equal_decades(axes, others)
  axes.legend(frameon=False, fontsize="small", loc="upper left")
  return figure


def _over_compute(findings: Findings, title: str, quantity: str) -> tuple[Figure, Axes]:
  figure, axes = new_plot(title, _COMPUTE_LABELS[findings.table.compute_column], quantity)
  axes.set_xscale("log")
  axes.set_yscale("log")
  # Between powers of ten there is room for labels only where all runs are within half a decade.
  axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(0.5, 0.25)))
  return figure, axes


def _names(runs: Iterable[Run]) -> list[str]:
  return list(dict.fromkeys(run.name for run in runs))


def _draw_networks(
  axes: Axes,
  findings: Findings,
  runs: Sequence[Run],
  x: Callable[[Run], float],
  y: Callable[[Run], float],
) -> None:
  """A network looks the same in all pictures."""
  for index, name in enumerate(_names(findings.table.runs)):
    own = sorted((run for run in runs if run.name == name), key=x)
    style = {
      "color": COLORS[index % len(COLORS)],
      "marker": _MARKERS[index // len(COLORS) % len(_MARKERS)],
      "markersize": 4,
      "linewidth": 1.2,
    }
    if own:
      axes.plot([x(run) for run in own], [y(run) for run in own], label=name, **style)


def _equal_decades(one: Axes, other: Axes) -> None:
  """Gives both logarithmic axes the same number of decades."""
  limits = [np.log10(axes.get_ylim()) for axes in (one, other)]
  decades = max(high - low for low, high in limits)
  for axes, (low, high) in zip((one, other), limits, strict=True):
    middle = (low + high) / 2
    axes.set_ylim(10 ** (middle - decades / 2), 10 ** (middle + decades / 2))
