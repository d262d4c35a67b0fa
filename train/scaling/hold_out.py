"""Tests the laws: those fitted to the runs of few epochs predict the runs of many epochs."""

import dataclasses

import numpy as np

from train.scaling.bootstrap import bootstrap_laws
from train.scaling.laws.law_set import FORMS
from train.scaling.laws.power_law import fit_compute_law
from train.scaling.points import Points, frontier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """Predictions of the held-out runs by one law or baseline.

  Attributes:
    label: name for people.
    short_label: name for narrow columns.
    frontier_only: whether it is meant for the runs on the frontier only.
    losses: [n] losses in nats; NaN where nothing is predicted.
    intervals: [n, 2] intervals of one new run's loss; None for baselines.
  """

  label: str
  short_label: str
  frontier_only: bool
  losses: np.ndarray
  intervals: np.ndarray | None

  def errors(self, points: Points) -> np.ndarray:
    """Returns predicted - measured losses, [n] in nats."""
    return self.losses - points.loss

  def inside(self, points: Points) -> np.ndarray | None:
    """Returns [n] booleans: whether the measured loss is inside its interval."""
    if self.intervals is None:
      return None
    return (self.intervals[:, 0] <= points.loss) & (points.loss <= self.intervals[:, 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Runs of many epochs, predicted from those of few.

  Attributes:
    epochs: largest number of epochs that was fitted.
    fitted_runs: number of runs that were fitted.
    points: the held-out runs.
    on_frontier: [n] booleans: whether a run is on the frontier of all runs.
    predictions: predictions by each law, then by the baselines.
  """

  epochs: float
  fitted_runs: int
  points: Points
  on_frontier: np.ndarray
  predictions: tuple[Prediction, ...]


def hold_out(points: Points, epochs: float, *, resamples: int, seed: int) -> HeldOut:
  """Fits laws to the runs up to a number of epochs and predicts the others.

  The baselines are each network's last fitted loss carried forward, and the line through its own
  fitted runs in log(loss) against log(compute).

  Args:
    points: runs, some of them of more than `epochs`.
    epochs: largest number of epochs that is fitted.
    resamples: number of resamples of the bootstrap.
    seed: seed of the resamples.
  """
  is_fitted = points.epochs <= epochs
  fitted, held_out = points.take(is_fitted), points.take(~is_fitted)
  laws = bootstrap_laws(fitted, resamples=resamples, seed=seed)
  predictions = []
  for form in FORMS:
    found = laws.predictions(form, held_out)
    if found is not None:
      predictions.append(
        Prediction(
          label=form.label,
          short_label=form.short_label,
          frontier_only=form.frontier_only,
          losses=found[0],
          intervals=found[1],
        )
      )
  for label, short_label, predict in (
    ("baseline: the network's own line", "own line", _own_line),
    ("baseline: the network's last loss", "last loss", _last_loss),
  ):
    losses = np.full(len(held_out), np.nan)
    for name in np.unique(held_out.names):
      own, rows = fitted.take(fitted.names == name), held_out.names == name
      if len(own):
        losses[rows] = predict(own, held_out.compute[rows])
    predictions.append(
      Prediction(
        label=label, short_label=short_label, frontier_only=False, losses=losses, intervals=None
      )
    )
  return HeldOut(
    epochs=epochs,
    fitted_runs=len(fitted),
    points=held_out,
    on_frontier=frontier(points.compute, points.loss)[~is_fitted],
    predictions=tuple(predictions),
  )


def _last_loss(own: Points, compute: np.ndarray) -> np.ndarray:
  """Predicts a network's last fitted loss, whatever the compute."""
  return np.full(len(compute), own.loss[np.argmax(own.epochs)])


def _own_line(own: Points, compute: np.ndarray) -> np.ndarray:
  """Predicts losses with the power law of a network's own fitted runs; NaN for too few runs."""
  law = fit_compute_law(own.compute, own.loss)
  return np.full(len(compute), np.nan) if law is None else law.loss(compute)
