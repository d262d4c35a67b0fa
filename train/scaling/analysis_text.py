"""An analysis as tables for a terminal, which `python -m train.scaling_law` prints."""

from collections.abc import Callable

import numpy as np

from nfnet.errors import format_count
from train.report.table import format_table
from train.scaling.analysis import Analysis
from train.scaling.bootstrap import Bootstrap, ConfidenceInterval
from train.scaling.hold_out import HeldOut, Prediction
from train.scaling.laws.compute_optimum import (
  MINIMAL_BUDGETS,
  MINIMAL_NETWORKS_PER_BUDGET,
  OptimumLaw,
)
from train.scaling.laws.joint_law import MINIMAL_RUNS_JOINT, MINIMAL_SETTINGS_JOINT
from train.scaling.laws.law_set import FORMS, OPTIMA, Laws
from train.scaling.outliers import THRESHOLD

OPTIMUM_LABELS = {
  "best_network": "best network at equal compute",
  "parabola": "parabola through the networks",
  "joint_optimum": "joint law",
}
_UNITS = {"compute_core_hours": "core-hours", "compute_flops": "FLOP"}
# Paper A states this for its own runs; it gives no number for the slope of its line.
_PAPER_A_ONE_EPOCH_CORE_HOURS = 5_000


def compute_unit(analysis: Analysis) -> str:
  """Returns the unit of compute."""
  return _UNITS[analysis.table.compute_column]


def compute_text(compute: float) -> str:
  """Returns an amount of compute without its unit."""
  return f"{compute:,.0f}" if compute < 1e9 else f"{compute:.3g}"


def as_text(analysis: Analysis) -> str:
  """Returns all tables."""
  parts = [_head(analysis), _loss_laws(analysis), _joint_law(analysis.bootstrap), _optima(analysis)]
  parts += [_budgets(analysis), _runs(analysis)]
  parts += [_held_out(analysis.held_out)] if analysis.held_out else []
  return "\n\n".join(part for part in parts if part)


def _head(analysis: Analysis) -> str:
  """Says how many runs there are and how the intervals were made."""
  runs, bootstrap = analysis.runs, analysis.bootstrap
  trials = sum(run.loss_nats is not None for run in analysis.table.runs) - len(runs)
  networks = len({run.name for run in runs})
  return (
    f"{format_count(len(runs), 'run')} of {format_count(networks, 'network')} with a loss"
    + (f" (and {trials} trials that others of the same epochs beat)" if trials else "")
    + f"; compute C in {compute_unit(analysis)}.\n"
    f"{int(analysis.on_frontier.sum())} are on the frontier: no other run costs as little and is "
    f"as good.\n[low, high]: 95 % intervals from {len(bootstrap.draws):,} resamples of the runs, "
    f"seed {bootstrap.seed}."
  )


def _loss_laws(analysis: Analysis) -> str:
  """Tabulates the laws of loss against compute."""
  bootstrap, rows = analysis.bootstrap, []
  for form in FORMS:
    residuals = bootstrap.residuals(form)
    if residuals is None:
      continue

    def value(name: str, field: str = form.field) -> str:
      return _value(bootstrap, lambda laws: getattr(getattr(laws, field), name, None), ".4f")

    one = not hasattr(getattr(bootstrap.laws, form.field), "size_exponent")
    predicted = [bootstrap.prediction(form, budget) for budget in analysis.budgets]
    rows.append(
      (
        form.label,
        str(len(residuals)),
        value("exponent") if one else "below",
        value("irreducible_loss") if form.coefficients > 2 else "0",
        f"{100 * np.sqrt(np.mean(residuals**2)):.2f} %",
        *("-" if one is None else _with_interval(*one, ".3f") for one in predicted),
      )
    )
  header = ("law", "runs", "exponent", "irreducible loss", "scatter")
  at = (f"loss at C = {compute_text(budget)}" for budget in analysis.budgets)
  return "\n".join(
    [
      "Held-out loss against compute: loss = irreducible loss + coefficient * C^-exponent",
      format_table(rows, (*header, *at)),
      "The intervals of predicted losses are for one new run: resampled laws and scatter. They do",
      "not cover the case that a law has the wrong form.",
    ]
  )


def _joint_law(bootstrap: Bootstrap) -> str:
  """Tabulates the coefficients of the joint law."""
  if bootstrap.laws.joint is None:
    return (
      f"No joint law: it needs {MINIMAL_RUNS_JOINT} runs, of {MINIMAL_SETTINGS_JOINT} sizes and "
      f"{MINIMAL_SETTINGS_JOINT} numbers of epochs."
    )
  fields = (
    ("irreducible loss E", "irreducible_loss", ".4f"),
    ("size exponent a", "size_exponent", ".4f"),
    ("epochs exponent b", "epochs_exponent", ".4f"),
    ("size coefficient A", "size_coefficient", ".3g"),
    ("epochs coefficient B", "epochs_coefficient", ".4f"),
  )
  rows = [
    (label, _value(bootstrap, lambda laws, name=name: getattr(laws.joint, name, None), style))
    for label, name, style in fields
  ]
  rows.append(
    (
      "cost exponent c",
      _value(bootstrap, lambda laws: laws.cost and laws.cost.exponent, ".4f"),
    )
  )
  title = "Joint law: loss = E + A / parameters^a + B / epochs^b; C = k * parameters^c * epochs"
  return f"{title}\n{format_table(rows)}"


def _optima(analysis: Analysis) -> str:
  """Tabulates by which powers of compute the optimal size and epochs grow."""
  bootstrap = analysis.bootstrap

  def row(field: str) -> tuple[str, ...]:
    def value(of: Callable[[OptimumLaw], float], style: str) -> str:
      def of_laws(laws: Laws) -> float | None:
        law = getattr(laws, field)
        return None if law is None else of(law)

      return _value(bootstrap, of_laws, style)

    style = ",.0f" if analysis.table.compute_column == "compute_core_hours" else ".3g"
    return (
      OPTIMUM_LABELS[field],
      value(lambda law: law.size_exponent, ".3f"),
      value(lambda law: law.epochs_exponent, ".3f"),
      value(lambda law: law.epochs_exponent - law.size_exponent, ".3f"),
      value(lambda law: law.one_epoch_compute, style),
    )

  fields = [field for field in OPTIMA if getattr(bootstrap.laws, field) is not None]
  if not fields:
    return (
      "No compute-optimal size: it needs a joint law, or at each of "
      f"{MINIMAL_BUDGETS} budgets {MINIMAL_NETWORKS_PER_BUDGET} networks with runs around it."
    )
  rows = [row(field) for field in fields]
  if analysis.table.compute_column == "compute_core_hours":
    about = f"about {_PAPER_A_ONE_EPOCH_CORE_HOURS:,}"
    rows.append(("paper A says of its runs", "as epochs", "as parameters", "0", about))
  text = [
    "Compute-optimal size and epochs: each grows as a power of C",
    format_table(
      rows,
      ("optimum by", "parameters", "epochs", "epochs - parameters", "above one epoch from C ="),
    ),
  ]
  if bootstrap.laws.cost:
    cost = _value(bootstrap, lambda laws: laws.cost and laws.cost.exponent, ".3f")
    text += [
      f"An epoch costs parameters^{cost}; its cost grows as C^(1 - exponent of epochs).",
      "Where 0 is in an interval of the difference, equal rates are not ruled out.",
    ]
  return "\n".join(text)


def _budgets(analysis: Analysis) -> str:
  """Tabulates the best runs and the optima at several budgets."""
  bootstrap, points = analysis.bootstrap, analysis.bootstrap.points
  fields = [field for field in OPTIMA if getattr(bootstrap.laws, field) is not None]
  rows = []
  for budget in _round_budgets(points.compute.min(), points.compute.max()):
    affordable = np.flatnonzero(points.compute <= budget)
    run = analysis.runs[affordable[np.argmin(points.loss[affordable])]]
    best = f"{run.name}, {run.epochs:g}, {run.loss_nats:.3f}"
    optima = [_size_and_epochs(bootstrap, field, budget, False) for field in fields]
    rows.append((compute_text(budget), best, *map(", ".join, optima)))
  text = []
  if rows:
    labels = [f"by {OPTIMUM_LABELS[field].split(' ')[0]}" for field in fields]
    text += [
      "Best run up to C (network, epochs, loss), and the optimal parameters and epochs",
      format_table(rows, ("C", "best run", *labels)),
    ]
  for budget in analysis.budgets if fields else ():
    rows = [
      (OPTIMUM_LABELS[field], *_size_and_epochs(bootstrap, field, budget, True)) for field in fields
    ]
    text += [
      f"Predicted optimum at C = {compute_text(budget)}",
      format_table(rows, ("optimum by", "parameters", "epochs")),
    ]
  if fields:
    text.append("* beyond the sizes or epochs of all runs")
  return "\n".join(text)


def _size_and_epochs(
  bootstrap: Bootstrap, field: str, budget: float, has_interval: bool
) -> list[str]:
  """Returns the optimal size and epochs at a budget as texts."""
  texts = []
  for name, divisor, suffix in (("parameters", 1e6, " M"), ("epochs", 1, "")):

    def value(laws: Laws, name: str = name, divisor: float = divisor) -> float | None:
      law = getattr(laws, field)
      return None if law is None else float(getattr(law, name)(budget)) / divisor

    estimate, tried = value(bootstrap.laws), getattr(bootstrap.points, name) / divisor
    text = f"{_two_digits(estimate)}{suffix}"
    if not tried.min() <= estimate <= tried.max():
      text += " *"
    if has_interval and (interval := bootstrap.interval(value)):
      text += f" [{_two_digits(interval.low)}, {_two_digits(interval.high)}]"
    texts.append(text)
  return texts


def _two_digits(value: float) -> str:
  """Formats a number with at least two significant digits and no decimals from 10 on."""
  return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _round_budgets(low: float, high: float) -> list[float]:
  """Returns all numbers between both ends that are 1 or 3 times a power of ten."""
  decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
  return [float(b) for decade in decades for b in (decade, 3 * decade) if low <= b <= high]


def _runs(analysis: Analysis) -> str:
  """Tabulates the runs, and how far each deviates from what the others predict."""
  bootstrap, judgment = analysis.bootstrap, analysis.judgment
  joint = bootstrap.laws.joint
  rows = []
  for index, run in enumerate(analysis.runs):
    row = [
      run.name,
      f"{run.epochs:g}",
      compute_text(run.compute),
      f"{run.loss_nats:.3f}",
      "frontier" if analysis.on_frontier[index] else "",
    ]
    if joint:
      row.append(f"{100 * np.log(run.loss_nats / joint.loss(run.parameters, run.epochs)):+.2f} %")
    if judgment:
      judged = np.isfinite(judgment.scores[index])
      row.append(f"{100 * judgment.deviations[index]:+.2f} %" if judged else "-")
      row.append(f"{judgment.scores[index]:+.2f}" if judged else "-")
      row.append(outlier_reason(analysis, index))
    rows.append(row)
  header = ["network", "epochs", "C", "loss", ""]
  header += ["off the joint law"] if joint else []
  header += ["off the others' fit", "score", ""] if judgment else []
  return "\n".join(["Runs", format_table(rows, header), _outlier_summary(analysis)])


def outlier_reason(analysis: Analysis, index: int) -> str:
  """Returns the reason why a run is an outlier; empty if it is not one."""
  judgment = analysis.judgment
  if judgment is None or not judgment.flagged[index]:
    return ""
  deviation = judgment.deviations[index]
  side = "above" if deviation > 0 else "below"
  of = "its network's other runs" if judgment.by == "own curve" else "the joint law of the others"
  return f"OUTLIER: {100 * abs(deviation):.2f} % {side} {of}"


def _outlier_summary(analysis: Analysis) -> str:
  """Says how many outliers there are, and how they are judged."""
  judgment = analysis.judgment
  if judgment is None:
    return "Outliers: too few runs to tell."
  by = (
    "a smooth curve through its network's other runs"
    if judgment.by == "own curve"
    else "the joint law of the other runs"
  )
  return (
    f"Outliers: {int(judgment.flagged.sum())}, off {by} by a modified z-score beyond {THRESHOLD}\n"
    "(Iglewicz and Hoaglin); by chance one in 15 clean tables has one. No fit leaves them out.\n"
    "Several on one curve say that it is uneven, not which of its runs are at fault."
  )


def _held_out(held_out: HeldOut) -> str:
  """Tabulates the errors of held-out predictions, in total and by run."""
  points, on_frontier = held_out.points, held_out.on_frontier
  text = [
    f"Held out: {held_out.fitted_runs} runs of at most {held_out.epochs:g} epochs fitted, the "
    f"other {len(points)} predicted",
    "Errors: predicted - measured loss, in nats and percent",
  ]
  for title, rows in (
    ("predicted by", np.ones(len(points), dtype=bool)),
    (f"the {int(on_frontier.sum())} on the frontier of all runs", on_frontier),
  ):
    lines = [
      (prediction.label, *_errors(prediction, held_out, rows))
      for prediction in held_out.predictions
      if rows is on_frontier or not prediction.frontier_only
    ]
    header = (title, "mean error", "mean size of it", "largest", "in 95 % interval")
    text += [format_table(lines, header)] if rows.any() else []
  by_run = [
    (
      str(points.names[run]),
      f"{points.epochs[run]:g}",
      f"{points.loss[run]:.3f}",
      "frontier" if on_frontier[run] else "",
      *(
        f"{100 * prediction.errors(points)[run] / points.loss[run]:+.2f}"
        if np.isfinite(prediction.losses[run])
        and (on_frontier[run] or not prediction.frontier_only)
        else "-"
        for prediction in held_out.predictions
      ),
    )
    for run in range(len(points))
  ]
  labels = [prediction.short_label for prediction in held_out.predictions]
  text += ["Errors in percent by run (E: irreducible loss)"]
  return "\n".join([*text, format_table(by_run, ("network", "epochs", "loss", "", *labels))])


def _errors(prediction: Prediction, held_out: HeldOut, rows: np.ndarray) -> tuple[str, ...]:
  """Returns mean, mean absolute and largest error, and runs inside their intervals, as texts."""
  errors, loss = prediction.errors(held_out.points)[rows], held_out.points.loss[rows]
  errors, loss = errors[np.isfinite(errors)], loss[np.isfinite(errors)]
  if not len(errors):
    return ("-",) * 4
  largest = np.argmax(np.abs(errors / loss))
  inside = prediction.inside(held_out.points)
  return (
    f"{errors.mean():+.3f} ({100 * np.mean(errors / loss):+.2f} %)",
    f"{np.abs(errors).mean():.3f} ({100 * np.mean(np.abs(errors / loss)):.2f} %)",
    f"{errors[largest]:+.3f} ({100 * errors[largest] / loss[largest]:+.2f} %)",
    "" if inside is None else f"{int(inside[rows].sum())} of {int(rows.sum())}",
  )


def _value(bootstrap: Bootstrap, value: Callable[[Laws], float | None], style: str) -> str:
  """Formats a quantity that follows from the laws, with its interval."""
  estimate = value(bootstrap.laws)
  if estimate is None or not np.isfinite(estimate):
    return "-"
  return _with_interval(estimate, bootstrap.interval(value), style)


def _with_interval(estimate: float, interval: ConfidenceInterval | None, style: str) -> str:
  """Formats an estimate with its interval, if it has one."""
  if interval is None:
    return f"{estimate:{style}}"
  return f"{estimate:{style}} [{interval.low:{style}}, {interval.high:{style}}]"
