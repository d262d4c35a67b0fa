"""An analysis as JSON, which `python -m train.scaling_law --json=FILE` writes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from train.scaling.analysis import Analysis
from train.scaling.analysis_text import compute_unit, outlier_reason
from train.scaling.bootstrap import CONFIDENCE, Bootstrap
from train.scaling.hold_out import HeldOut
from train.scaling.laws.law_set import FORMS, OPTIMA, Laws
from train.scaling.laws.power_law import ComputeLaw


def as_json(analysis: Analysis) -> dict[str, Any]:
  """Returns everything that the tables show, and each held-out run's prediction.

  Compute is in `compute_unit`, losses are in nats. An interval is [low, high]; null means that a
  value does not exist.
  """
  bootstrap = analysis.bootstrap
  return {
    "compute_unit": compute_unit(analysis),
    "confidence": CONFIDENCE,
    "resamples": len(bootstrap.draws),
    "seed": bootstrap.seed,
    "laws": {
      field.name: _law(bootstrap, field.name)
      for field in dataclasses.fields(Laws)
      if getattr(bootstrap.laws, field.name) is not None
    },
    "predictions": [_predictions(bootstrap, budget) for budget in analysis.budgets],
    "optima_by_budget": {
      way: {name: getattr(optima, name).tolist() for name in ("compute", "parameters", "epochs")}
      for way, optima in bootstrap.optima.items()
    },
    "outliers_judged_by": analysis.judgment and analysis.judgment.by,
    "runs": [
      {
        **{key: value for key, value in dataclasses.asdict(run).items() if key != "place"},
        "on_frontier": bool(analysis.on_frontier[index]),
        "outlier_score": analysis.judgment and _finite(analysis.judgment.scores[index]),
        "outlier_log_deviation": analysis.judgment and _finite(analysis.judgment.deviations[index]),
        "outlier": outlier_reason(analysis, index) or None,
      }
      for index, run in enumerate(analysis.runs)
    ],
    "held_out": analysis.held_out and _held_out(analysis.held_out),
  }


def _law(bootstrap: Bootstrap, field: str) -> dict[str, Any]:
  """Returns the coefficients of a law, with intervals for those that were fitted."""
  law = getattr(bootstrap.laws, field)
  fixed = {"huber_scale"}
  if isinstance(law, ComputeLaw) and law.huber_scale is None:
    fixed.add("irreducible_loss")

  def estimate(part: str) -> dict[str, Any]:
    found = _estimate(bootstrap, lambda laws: getattr(getattr(laws, field), part, None))
    return {**found, "interval": None} if part in fixed else found

  names = [part.name for part in dataclasses.fields(law)]
  return {name: estimate(name) for name in names if getattr(law, name) is not None}


def _predictions(bootstrap: Bootstrap, budget: float) -> dict[str, Any]:
  """Returns the losses and the optima predicted for a budget."""

  def optimum(field: str, name: str) -> dict[str, Any]:
    def value(laws: Laws) -> float | None:
      law = getattr(laws, field)
      return None if law is None else float(getattr(law, name)(budget))

    return _estimate(bootstrap, value)

  return {
    "compute": budget,
    "loss_nats": {
      form.field: {"estimate": found[0], "interval": found[1]}
      for form in FORMS
      if (found := bootstrap.prediction(form, budget))
    },
    "optimum": {
      field: {name: optimum(field, name) for name in ("parameters", "epochs")}
      for field in OPTIMA
      if getattr(bootstrap.laws, field) is not None
    },
  }


def _estimate(bootstrap: Bootstrap, value: Callable[[Laws], float | None]) -> dict[str, Any]:
  """Returns a quantity that follows from the laws, with its interval."""
  return {"estimate": _finite(value(bootstrap.laws)), "interval": bootstrap.interval(value)}


def _finite(value: float) -> float | None:
  """Returns None for NaN and infinity, which JSON does not have."""
  return float(value) if math.isfinite(value) else None


def _held_out(held_out: HeldOut) -> dict[str, Any]:
  """Returns the held-out runs and their predictions."""
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
  """Returns the mean of the finite values of some rows; None if there are none."""
  finite = values[rows][np.isfinite(values[rows])]
  return float(finite.mean()) if len(finite) else None
