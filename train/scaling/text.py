"""What `train.scaling_law` prints."""

from collections.abc import Callable

import numpy as np

from train.report.table import format_table
from train.scaling.findings import Findings
from train.scaling.fits import (
  MINIMAL_BUDGETS,
  MINIMAL_NETWORKS_A_BUDGET,
  MINIMAL_RUNS_JOINT,
  MINIMAL_SETTINGS_JOINT,
  OptimumLaw,
)
from train.scaling.outliers import THRESHOLD
from train.scaling.study import FORMS, OPTIMA, HeldOut, Interval, Laws, Prediction, Study

OPTIMUM_LABELS = {
  "best_network": "best network at equal compute",
  "parabola": "parabola through the networks",
  "joint_optimum": "joint law",
}
_UNITS = {"compute_core_hours": "core-hours", "compute_flops": "FLOP"}
# What paper A says of its own runs. Of the slope of its line it gives no number.
_PAPER_A_ONE_EPOCH_CORE_HOURS = 5_000


def unit(findings: Findings) -> str:
  """Of compute."""
  return _UNITS[findings.table.compute_column]


def compute_text(compute: float) -> str:
  """Without its unit."""
  return f"{compute:,.0f}" if compute < 1e9 else f"{compute:.3g}"


def as_text(findings: Findings) -> str:
  """Tables for a terminal."""
  parts = [_head(findings), _loss_laws(findings), _joint_law(findings.study), _optima(findings)]
  parts += [_budgets(findings), _runs(findings)]
  parts += [_held_out(findings.held_out)] if findings.held_out else []
  return "\n\n".join(part for part in parts if part)


def _head(findings: Findings) -> str:
  runs, draws = findings.runs, len(findings.study.draws)
  trials = sum(run.loss_nats is not None for run in findings.table.runs) - len(runs)
  networks = len({run.name for run in runs})
  return (
    f"{len(runs)} runs of {networks} networks with a loss"
    + (f" (and {trials} trials that others of the same epochs beat)" if trials else "")
    + f"; compute C in {unit(findings)}.\n{int(findings.on_frontier.sum())} are on the frontier: "
    f"no other costs as little and is as good.\n"
    f"[low, high]: 95 % intervals from {draws:,} resamples of the runs, seed {findings.study.seed}."
  )


def _loss_laws(findings: Findings) -> str:
  study, rows = findings.study, []
  for form in FORMS:
    residuals = study.residuals(form)
    if residuals is None:
      continue

    def value(name: str, field: str = form.field) -> str:
      return _value(study, lambda laws: getattr(getattr(laws, field), name, None), ".4f")

    one = not hasattr(getattr(study.laws, form.field), "size_exponent")
    predicted = [study.prediction(form, budget) for budget in findings.budgets]
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
  at = (f"loss at C = {compute_text(budget)}" for budget in findings.budgets)
  return "\n".join(
    [
      "Held-out loss against compute: loss = irreducible loss + coefficient * C^-exponent",
      format_table(rows, (*header, *at)),
      "The intervals of predicted losses are for one new run: resampled laws and scatter. They do",
      "not cover that a law may have the wrong form.",
    ]
  )


def _joint_law(study: Study) -> str:
  if study.laws.joint is None:
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
    (label, _value(study, lambda laws, name=name: getattr(laws.joint, name, None), style))
    for label, name, style in fields
  ]
  rows.append(
    (
      "cost exponent c",
      _value(study, lambda laws: laws.cost and laws.cost.exponent, ".4f"),
    )
  )
  title = "Joint law: loss = E + A / parameters^a + B / epochs^b; C = k * parameters^c * epochs"
  return f"{title}\n{format_table(rows)}"


def _optima(findings: Findings) -> str:
  study = findings.study

  def row(field: str) -> tuple[str, ...]:
    def value(of: Callable[[OptimumLaw], float], style: str) -> str:
      def of_laws(laws: Laws) -> float | None:
        law = getattr(laws, field)
        return None if law is None else of(law)

      return _value(study, of_laws, style)

    style = ",.0f" if findings.table.compute_column == "compute_core_hours" else ".3g"
    return (
      OPTIMUM_LABELS[field],
      value(lambda law: law.size_exponent, ".3f"),
      value(lambda law: law.epochs_exponent, ".3f"),
      value(lambda law: law.epochs_exponent - law.size_exponent, ".3f"),
      value(lambda law: law.one_epoch_compute, style),
    )

  fields = [field for field in OPTIMA if getattr(study.laws, field) is not None]
  if not fields:
    return (
      "No compute-optimal size: it needs a joint law, or at each of "
      f"{MINIMAL_BUDGETS} budgets {MINIMAL_NETWORKS_A_BUDGET} networks with runs around it."
    )
  rows = [row(field) for field in fields]
  if findings.table.compute_column == "compute_core_hours":
    about = f"about {_PAPER_A_ONE_EPOCH_CORE_HOURS:,}"
    rows.append(("paper A says of its runs", "as epochs", "as parameters", "0", about))
  text = [
    "Compute-optimal size and epochs: each grows as a power of C",
    format_table(
      rows,
      ("optimum by", "parameters", "epochs", "epochs - parameters", "above one epoch from C ="),
    ),
  ]
  if study.laws.cost:
    cost = _value(study, lambda laws: laws.cost and laws.cost.exponent, ".3f")
    text += [
      f"An epoch costs parameters^{cost}; its cost grows as C^(1 - exponent of epochs).",
      "Where 0 is in an interval of the difference, equal rates are not ruled out.",
    ]
  return "\n".join(text)


def _budgets(findings: Findings) -> str:
  study, points = findings.study, findings.study.points
  fields = [field for field in OPTIMA if getattr(study.laws, field) is not None]
  rows = []
  for budget in _round_budgets(points.compute.min(), points.compute.max()):
    affordable = np.flatnonzero(points.compute <= budget)
    run = findings.runs[affordable[np.argmin(points.loss[affordable])]]
    best = f"{run.name}, {run.epochs:g}, {run.loss_nats:.3f}"
    optima = [_size_and_epochs(study, field, budget, False) for field in fields]
    rows.append((compute_text(budget), best, *map(", ".join, optima)))
  text = []
  if rows:
    labels = [f"by {OPTIMUM_LABELS[field].split(' ')[0]}" for field in fields]
    text += [
      "Best run up to C (network, epochs, loss), and the optimal parameters and epochs",
      format_table(rows, ("C", "best run", *labels)),
    ]
  for budget in findings.budgets if fields else ():
    rows = [
      (OPTIMUM_LABELS[field], *_size_and_epochs(study, field, budget, True)) for field in fields
    ]
    text += [
      f"Predicted optimum at C = {compute_text(budget)}",
      format_table(rows, ("optimum by", "parameters", "epochs")),
    ]
  if fields:
    text.append("* beyond the sizes or epochs of all runs")
  return "\n".join(text)


def _size_and_epochs(study: Study, field: str, budget: float, has_interval: bool) -> list[str]:
  texts = []
  for name, divisor, suffix in (("parameters", 1e6, " M"), ("epochs", 1, "")):

    def value(laws: Laws, name: str = name, divisor: float = divisor) -> float | None:
      law = getattr(laws, field)
      return None if law is None else float(getattr(law, name)(budget)) / divisor

    estimate, tried = value(study.laws), getattr(study.points, name) / divisor
    text = f"{_two_digits(estimate)}{suffix}"
    if not tried.min() <= estimate <= tried.max():
      text += " *"
    if has_interval and (interval := study.interval(value)):
      text += f" [{_two_digits(interval.low)}, {_two_digits(interval.high)}]"
    texts.append(text)
  return texts


def _two_digits(value: float) -> str:
  return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _round_budgets(low: float, high: float) -> list[float]:
  """1 and 3 of each power of ten between both."""
  decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
  return [float(b) for decade in decades for b in (decade, 3 * decade) if low <= b <= high]


def _runs(findings: Findings) -> str:
  study, judgment = findings.study, findings.judgment
  joint = study.laws.joint
  rows = []
  for index, run in enumerate(findings.runs):
    row = [
      run.name,
      f"{run.epochs:g}",
      compute_text(run.compute),
      f"{run.loss_nats:.3f}",
      "frontier" if findings.on_frontier[index] else "",
    ]
    if joint:
      row.append(f"{100 * np.log(run.loss_nats / joint.loss(run.parameters, run.epochs)):+.2f} %")
    if judgment:
      judged = np.isfinite(judgment.scores[index])
      row.append(f"{100 * judgment.deviations[index]:+.2f} %" if judged else "-")
      row.append(f"{judgment.scores[index]:+.2f}" if judged else "-")
      row.append(outlier_reason(findings, index))
    rows.append(row)
  header = ["network", "epochs", "C", "loss", ""]
  header += ["off the joint law"] if joint else []
  header += ["off the others' fit", "score", ""] if judgment else []
  return "\n".join(["Runs", format_table(rows, header), _outlier_words(findings)])


def outlier_reason(findings: Findings, index: int) -> str:
  """Why a run is an outlier; empty if it is none."""
  judgment = findings.judgment
  if judgment is None or not judgment.flagged[index]:
    return ""
  deviation = judgment.deviations[index]
  side = "above" if deviation > 0 else "below"
  of = "its network's other runs" if judgment.by == "own curve" else "the joint law of the others"
  return f"OUTLIER: {100 * abs(deviation):.2f} % {side} {of}"


def _outlier_words(findings: Findings) -> str:
  judgment = findings.judgment
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
  """Mean error, mean and largest absolute error, runs inside their intervals."""
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


def _value(study: Study, value: Callable[[Laws], float | None], style: str) -> str:
  estimate = value(study.laws)
  if estimate is None or not np.isfinite(estimate):
    return "-"
  return _with_interval(estimate, study.interval(value), style)


def _with_interval(estimate: float, interval: Interval | None, style: str) -> str:
  if interval is None:
    return f"{estimate:{style}}"
  return f"{estimate:{style}} [{interval.low:{style}}, {interval.high:{style}}]"
