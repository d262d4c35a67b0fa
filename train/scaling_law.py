r"""Scaling laws of runs: what more compute buys, and how to split it between size and epochs.

    python -m train.scaling_law --runs=train/published_runs/paper_a_nfnets.csv \
        --runs=train/published_runs/paper_a_finetuned.csv --hold_out_epochs=2 \
        [--predict_compute=C] [--json=OUT] [--plots=FOLDER]

Reads tables of runs (`train/scaling/run_table.py` names the columns; those above are paper A's),
and prints

- loss as a power of compute, with and without an irreducible loss, of all runs and of those that
  are best for what they cost, and as a joint law of size and epochs;
- by which powers of compute optimal size and optimal number of epochs grow, in three ways;
- losses, sizes and epochs to expect of --predict_compute, four times the dearest run by default;
- runs that do not lie where the others put them;
- how well runs of more than --hold_out_epochs epochs are predicted from the others.

All with 95 % intervals, from resamples of the runs: of 36 runs 1,000 take half a minute, and as
much again for held-out ones. Paper A draws a line through its losses but gives no number for its
slope; what it says of the optimum is printed beside what the points give.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from train.report.output import write_json
from train.scaling.findings import Findings, find
from train.scaling.fits import ComputeLaw
from train.scaling.plots import write_plots
from train.scaling.run_table import read_runs
from train.scaling.study import CONFIDENCE, FORMS, OPTIMA, HeldOut, Laws, Study
from train.scaling.text import as_text, outlier_reason, unit


def as_json(findings: Findings) -> dict[str, Any]:
  """Everything that is printed, and each held-out run's prediction.

  Compute is in `compute_unit`, losses are in nats. An interval is [low, high]; null is what there
  is not.
  """
  study = findings.study
  return {
    "compute_unit": unit(findings),
    "confidence": CONFIDENCE,
    "resamples": len(study.draws),
    "seed": study.seed,
    "laws": {
      field.name: _law(study, field.name)
      for field in dataclasses.fields(Laws)
      if getattr(study.laws, field.name) is not None
    },
    "predictions": [
      {
        "compute": budget,
        "loss_nats": {
          form.field: {"estimate": found[0], "interval": found[1]}
          for form in FORMS
          if (found := study.prediction(form, budget))
        },
        "optimum": {
          field: {
            name: _estimate(study, lambda laws, f=field, n=name, b=budget: _optimum(laws, f, n, b))
            for name in ("parameters", "epochs")
          }
          for field in OPTIMA
          if getattr(study.laws, field) is not None
        },
      }
      for budget in findings.budgets
    ],
    "optima_by_budget": {
      way: {name: getattr(optima, name).tolist() for name in ("compute", "parameters", "epochs")}
      for way, optima in study.optima.items()
    },
    "outliers_judged_by": findings.judgment and findings.judgment.by,
    "runs": [
      {
        **{key: value for key, value in dataclasses.asdict(run).items() if key != "place"},
        "on_frontier": bool(findings.on_frontier[index]),
        "outlier_score": findings.judgment and _finite(findings.judgment.scores[index]),
        "outlier_log_deviation": findings.judgment and _finite(findings.judgment.deviations[index]),
        "outlier": outlier_reason(findings, index) or None,
      }
      for index, run in enumerate(findings.runs)
    ],
    "held_out": findings.held_out and _held_out(findings.held_out),
  }


def _law(study: Study, field: str) -> dict[str, Any]:
  """Coefficients and their intervals, which those have that were fitted."""
  law = getattr(study.laws, field)
  fixed = {"huber_scale"}
  if isinstance(law, ComputeLaw) and law.huber_scale is None:
    fixed.add("irreducible_loss")

  def estimate(part: str) -> dict[str, Any]:
    found = _estimate(study, lambda laws: getattr(getattr(laws, field), part, None))
    return {**found, "interval": None} if part in fixed else found

  names = [part.name for part in dataclasses.fields(law)]
  return {name: estimate(name) for name in names if getattr(law, name) is not None}


def _optimum(laws: Laws, field: str, name: str, compute: float) -> float | None:
  law = getattr(laws, field)
  return None if law is None else float(getattr(law, name)(compute))


def _estimate(study: Study, value: Callable[[Laws], float | None]) -> dict[str, Any]:
  return {"estimate": _finite(value(study.laws)), "interval": study.interval(value)}


def _finite(value: float) -> float | None:
  """JSON has no NaN."""
  return float(value) if math.isfinite(value) else None


def _held_out(held_out: HeldOut) -> dict[str, Any]:
  points = held_out.points
  return {
    "fitted_up_to_epochs": held_out.epochs,
    "fitted_runs": held_out.fitted_runs,
    "runs": [
      {
        "name": str(points.names[run]),
        "epochs": float(points.epochs[run]),
        "compute": float(points.compute[run]),
        "loss_nats": float(points.loss[run]),
        "on_frontier": bool(held_out.on_frontier[run]),
      }
      for run in range(len(points))
    ],
    "predictions": [
      {
        "label": prediction.label,
        "for_the_frontier_only": prediction.frontier_only,
        "loss_nats": list(map(_finite, prediction.losses)),
        "intervals": None
        if prediction.intervals is None
        else [[_finite(end) for end in interval] for interval in prediction.intervals],
        "mean_absolute_error_nats": _mean(
          np.abs(prediction.errors(points)),
          held_out.on_frontier if prediction.frontier_only else slice(None),
        ),
        "mean_absolute_error_percent": _mean(
          100 * np.abs(prediction.errors(points) / points.loss),
          held_out.on_frontier if prediction.frontier_only else slice(None),
        ),
      }
      for prediction in held_out.predictions
    ],
  }


def _mean(values: np.ndarray, rows: np.ndarray | slice) -> float | None:
  finite = values[rows][np.isfinite(values[rows])]
  return float(finite.mean()) if len(finite) else None


def run(
  paths: Sequence[str],
  *,
  budgets: Sequence[float] = (),
  resamples: int = 1000,
  seed: int = 0,
  hold_out_epochs: float | None = None,
  json_path: str | None = None,
  plots_folder: str | None = None,
) -> str:
  """Reads, fits and writes.

  Args:
    paths: tables of runs.
    budgets: of compute, to predict for; none is four times the dearest run.
    resamples: of the bootstrap.
    seed: of them.
    hold_out_epochs: runs with more are predicted from the others; None leaves this out.
    json_path: file for everything that was found.
    plots_folder: for the pictures.

  Returns:
    What to print.

  Raises:
    UserError: a table is wrong or too short, or a result cannot be written.
  """
  findings = find(
    read_runs(paths),
    resamples=resamples,
    seed=seed,
    budgets=budgets,
    hold_out_epochs=hold_out_epochs,
  )
  text = [as_text(findings)]
  if json_path:
    # Intervals of everything take seconds, so only where somebody wants them.
    write_json("json", json_path, as_json(findings))
  if plots_folder:
    text += ["", *(f"picture: {path}" for path in write_plots(plots_folder, findings))]
  return "\n".join(text)


def main(arguments: list[str]) -> None:
  """Prints the tables and writes what the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  print(
    run(
      values.runs,
      budgets=values.predict_compute or (),
      resamples=values.resamples,
      seed=values.seed,
      hold_out_epochs=values.hold_out_epochs,
      json_path=values.json,
      plots_folder=values.plots,
    )
  )


def _define_flags() -> None:
  flags.DEFINE_multi_string("runs", None, "CSV file of runs; may be repeated.", required=True)
  flags.DEFINE_multi_float(
    "predict_compute", None, "Compute to predict for; default: four times the dearest run."
  )
  flags.DEFINE_integer("resamples", 1000, "Resamples for the intervals.", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Of the resamples.", lower_bound=0)
  flags.DEFINE_float("hold_out_epochs", None, "Predict runs of more epochs from the others.")
  flags.DEFINE_string("json", None, "Write everything to this file too.")
  flags.DEFINE_string("plots", None, "Write pictures to this folder.")


if __name__ == "__main__":
  _define_flags()
  run_main(main)
