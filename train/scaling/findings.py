"""From a table of runs to everything that `train.scaling_law` says about it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nfnet.errors import UserError
from train.scaling.fits import MINIMAL_RUNS, Points, frontier
from train.scaling.outliers import Judgment, judge
from train.scaling.run_table import Run, RunTable, best_trials
from train.scaling.study import HeldOut, Study, hold_out, study

_DEFAULT_BUDGET_FACTOR = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
  """What was found.

  Attributes:
    table: as read.
    runs: [n] of it that were fitted: with a loss, the best of their trials.
    on_frontier: [n] of bool.
    study: laws of these runs.
    judgment: of these runs; None if they are too few.
    held_out: check; None if not asked for.
    budgets: of compute, to predict for.
  """

  table: RunTable
  runs: tuple[Run, ...]
  on_frontier: np.ndarray
  study: Study
  judgment: Judgment | None
  held_out: HeldOut | None
  budgets: tuple[float, ...]


def find(
  table: RunTable,
  *,
  resamples: int,
  seed: int,
  budgets: Sequence[float] = (),
  hold_out_epochs: float | None = None,
) -> Findings:
  """Fits, judges and predicts.

  Args:
    table: of runs.
    resamples: of the bootstrap; fewer than 20 give no intervals.
    seed: of the resamples.
    budgets: of compute, to predict for; none is four times the dearest run.
    hold_out_epochs: runs with more are predicted from the others; None leaves this check out.

  Raises:
    UserError: there are too few runs, or a value makes no sense.
  """
  for budget in budgets:
    if not (np.isfinite(budget) and budget > 0):
      raise UserError(f"--predict_compute={budget:g}: must be a number above 0")
  runs = best_trials(table.runs)
  points = as_points(runs)
  _check_enough(points, "a loss")
  if hold_out_epochs is not None:
    _check_enough(
      points.take(points.epochs <= hold_out_epochs),
      f"at most --hold_out_epochs={hold_out_epochs:g}",
    )
    if not np.any(points.epochs > hold_out_epochs):
      raise UserError(
        f"--hold_out_epochs={hold_out_epochs:g}: no run has more to predict; the most is "
        f"{points.epochs.max():g}"
      )
  done = study(points, resamples=resamples, seed=seed)
  return Findings(
    table=table,
    runs=runs,
    on_frontier=frontier(points.compute, points.loss),
    study=done,
    judgment=judge(points, done.laws.joint),
    held_out=None
    if hold_out_epochs is None
    else hold_out(points, hold_out_epochs, resamples=resamples, seed=seed),
    budgets=tuple(budgets) or (_DEFAULT_BUDGET_FACTOR * float(points.compute.max()),),
  )


def as_points(runs: Sequence[Run]) -> Points:
  """Arrays of runs that have a loss."""
  return Points(
    names=np.array([run.name for run in runs], dtype=str),
    parameters=np.array([run.parameters for run in runs], dtype=float),
    epochs=np.array([run.epochs for run in runs], dtype=float),
    compute=np.array([run.compute for run in runs], dtype=float),
    loss=np.array([run.loss_nats for run in runs], dtype=float),
  )


def _check_enough(points: Points, condition: str) -> None:
  different = len(np.unique(points.compute))
  if different < MINIMAL_RUNS:
    raise UserError(
      f"runs with {condition} have {different} different amounts of compute; a law needs "
      f"{MINIMAL_RUNS}, so give more runs"
    )
