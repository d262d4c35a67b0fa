"""The whole analysis of one table of runs, which `python -m train.scaling_law` prints and draws."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nfnet.errors import UserError
from train.scaling.bootstrap import Bootstrap, bootstrap_laws
from train.scaling.hold_out import HeldOut, hold_out
from train.scaling.laws.power_law import MINIMAL_RUNS
from train.scaling.laws.regression import MINIMAL_DEVIATION
from train.scaling.outliers import Judgment, judge
from train.scaling.points import Points, as_points, frontier
from train.scaling.run_table import Run, RunTable, best_trials

RUNS_MAX = 2_000
"""Most runs to which laws are fitted: each is fitted to a thousand resamples of them."""
_DEFAULT_BUDGET_FACTOR = 4
_SPREAD_MIN = 10 * MINIMAL_DEVIATION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
  """The results of an analysis.

  Attributes:
    table: table as read.
    runs: [n] runs of the table that were fitted: the best of each setting's trials with a loss.
    on_frontier: [n] booleans: whether a run is on the compute-loss frontier.
    bootstrap: laws of these runs, with their resamples.
    judgment: which of these runs are outliers; None if there are too few runs.
    held_out: predictions of held-out runs; None if not asked for.
    budgets: amounts of compute to predict for.
  """

  table: RunTable
  runs: tuple[Run, ...]
  on_frontier: np.ndarray
  bootstrap: Bootstrap
  judgment: Judgment | None
  held_out: HeldOut | None
  budgets: tuple[float, ...]


def analyze(
  table: RunTable,
  *,
  resamples: int,
  seed: int,
  budgets: Sequence[float] = (),
  hold_out_epochs: float | None = None,
) -> Analysis:
  """Fits all laws, judges outliers and tests predictions.

  Args:
    table: runs.
    resamples: number of resamples of the bootstrap; fewer than 20 give no intervals.
    seed: seed of the resamples.
    budgets: amounts of compute to predict for; empty means four times the most expensive run.
    hold_out_epochs: runs of more epochs are predicted from the others; None leaves this out.

  Raises:
    UserError: there are too few runs or too many, their losses are all equal, or a value is
      invalid.
  """
  for budget in budgets:
    if not (np.isfinite(budget) and budget > 0):
      raise UserError(f"--predict_compute={budget:g}: must be a number above 0")
  runs = best_trials(table.runs)
  if len(runs) > RUNS_MAX:
    raise UserError(
      f"{len(runs):,} runs with a loss, where {RUNS_MAX:,} are the most; give fewer networks or "
      "numbers of epochs"
    )
  points = as_points(runs)
  _check_enough(points, "a loss")
  if hold_out_epochs is not None:
    _check_enough(
      points.take(points.epochs <= hold_out_epochs),
      f"at most --hold_out_epochs={hold_out_epochs:g}",
    )
    if not np.any(points.epochs > hold_out_epochs):
      raise UserError(
        f"--hold_out_epochs={hold_out_epochs:g}: no run has more epochs to predict; give less than "
        f"{points.epochs.max():g}"
      )
  bootstrap = bootstrap_laws(points, resamples=resamples, seed=seed)
  return Analysis(
    table=table,
    runs=runs,
    on_frontier=frontier(points.compute, points.loss),
    bootstrap=bootstrap,
    judgment=judge(points, bootstrap.laws.joint),
    held_out=None
    if hold_out_epochs is None
    else hold_out(points, hold_out_epochs, resamples=resamples, seed=seed),
    budgets=tuple(budgets) or (_DEFAULT_BUDGET_FACTOR * float(points.compute.max()),),
  )


def _check_enough(points: Points, condition: str) -> None:
  """Raises UserError unless the runs have enough different amounts of compute for a law."""
  different = len(np.unique(points.compute))
  if different < MINIMAL_RUNS:
    raise UserError(
      f"runs with {condition} have {different} different amounts of compute; a law needs "
      f"{MINIMAL_RUNS}, so give more runs"
    )
  if np.log(points.loss.max() / points.loss.min()) < _SPREAD_MIN:
    raise UserError(
      f"the {len(points)} runs with {condition} all have a loss of {points.loss.min():.4g} nats; a "
      "law needs runs that differ"
    )
