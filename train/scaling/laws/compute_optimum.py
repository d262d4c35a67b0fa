"""The best size and number of epochs for a given compute, in three ways.

The ways are approaches 1, 2 and 3 of Hoffmann et al., "Training Compute-Optimal Large Language
Models" (https://arxiv.org/abs/2203.15556), with epochs in place of tokens, as in paper A
(https://arxiv.org/abs/2310.16764).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from train.scaling.laws.joint_law import CostLaw, JointLaw
from train.scaling.laws.regression import fit_line
from train.scaling.points import Points

BUDGETS = 60
"""Number of budgets at which networks are compared, evenly spaced in the logarithm of compute."""
MINIMAL_NETWORKS_PER_BUDGET = 3
"""Fewest networks to compare: of fewer, the best one is always the smallest or largest."""
MINIMAL_BUDGETS = 3

Way = Literal["best network", "parabola"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimumLaw:
  """The best size and the best number of epochs, each a power of compute.

  Attributes:
    log_parameters: intercept of log(parameters) against log(compute).
    size_exponent: slope of log(parameters) against log(compute).
    log_epochs: intercept of log(epochs) against log(compute).
    epochs_exponent: slope of log(epochs) against log(compute).
  """

  log_parameters: float
  size_exponent: float
  log_epochs: float
  epochs_exponent: float

  def parameters(self, compute: np.ndarray | float) -> np.ndarray | float:
    """Returns the number of parameters of the best network."""
    return _exp(self.log_parameters + self.size_exponent * np.log(compute))

  def epochs(self, compute: np.ndarray | float) -> np.ndarray | float:
    """Returns the number of epochs to train the best network for."""
    return _exp(self.log_epochs + self.epochs_exponent * np.log(compute))

  @property
  def one_epoch_compute(self) -> float:
    """Compute above which more than one epoch is best; NaN if epochs do not grow."""
    if self.epochs_exponent <= 0:
      return float("nan")
    return float(_exp(-self.log_epochs / self.epochs_exponent))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optima:
  """The best size and epochs at several budgets, as [m] arrays."""

  compute: np.ndarray
  parameters: np.ndarray
  epochs: np.ndarray


def joint_optimum(joint: JointLaw, cost: CostLaw) -> OptimumLaw | None:
  """Returns where the joint law is lowest for given compute, in closed form (approach 3).

  With loss E + A/N^a + B/D^b and compute k * N^c * D, the derivative by log N vanishes where
  a * A / N^a = b * c * B / D^b, so N^(a + bc) = a * A / (b * c * B) * (compute / k)^b.

  Args:
    joint: law of the loss.
    cost: law of the compute.

  Returns:
    The optimum; None if size or epochs cost nothing or gain nothing, so that there is no optimum.
  """
  a, b, c = joint.size_exponent, joint.epochs_exponent, cost.exponent
  gains = (a * joint.size_coefficient, b * c * joint.epochs_coefficient)
  # Not 0, because the fit reaches its bounds only up to rounding.
  if min(a, b, c) < 1e-6 or min(gains) <= 0:
    return None
  size_exponent = b / (a + b * c)
  log_k = np.log(cost.coefficient)
  log_parameters = np.log(gains[0] / gains[1]) / (a + b * c) - size_exponent * log_k
  return OptimumLaw(
    log_parameters=float(log_parameters),
    size_exponent=size_exponent,
    log_epochs=float(-log_k - c * log_parameters),
    epochs_exponent=1 - c * size_exponent,
  )


def interpolated_optima(points: Points, way: Way, budgets: np.ndarray) -> Optima:
  """Compares networks at equal compute (approaches 1 and 2).

  Each network's loss and epochs are interpolated between its runs, linearly in logarithms, and
  never extrapolated. "best network" takes the network with the lowest loss, "parabola" the vertex
  of a parabola through log(loss) against log(parameters). A budget is left out if fewer than three
  networks have runs around it, if the best network is the smallest or largest of these, or if the
  vertex is outside their range: such runs only say that the optimum is not between them.

  Args:
    points: runs.
    way: how the optimum is found.
    budgets: [b] amounts of compute.

  Returns:
    The optima at those budgets that have one.
  """
  found = []
  if len(np.unique(points.names)) < MINIMAL_NETWORKS_PER_BUDGET:
    budgets = budgets[:0]
  sizes, losses, epochs = _at_budgets(points, np.log(budgets))
  for column in range(len(budgets)):
    there = np.isfinite(losses[:, column])
    if there.sum() < MINIMAL_NETWORKS_PER_BUDGET:
      continue
    size, loss, epoch = sizes[there], losses[there, column], epochs[there, column]
    best = _vertex(size, loss) if way == "parabola" else _lowest(size, loss)
    if best is not None:
      found.append((budgets[column], np.exp(best), np.exp(np.interp(best, size, epoch))))
  compute, parameters, best_epochs = np.array(found).reshape(-1, 3).T
  return Optima(compute=compute, parameters=parameters, epochs=best_epochs)


def fit_optimum_law(optima: Optima) -> OptimumLaw | None:
  """Fits lines to log(parameters) and log(epochs) against log(compute) by least squares.

  Args:
    optima: best size and epochs at several budgets.

  Returns:
    The law; None for fewer than three budgets.
  """
  if len(optima.compute) < MINIMAL_BUDGETS:
    return None
  log_compute = np.log(optima.compute)
  size_exponent, log_parameters = fit_line(log_compute, np.log(optima.parameters))
  epochs_exponent, log_epochs = fit_line(log_compute, np.log(optima.epochs))
  return OptimumLaw(
    log_parameters=log_parameters,
    size_exponent=size_exponent,
    log_epochs=log_epochs,
    epochs_exponent=epochs_exponent,
  )


def budgets_between(compute: Sequence[float] | np.ndarray) -> np.ndarray:
  """Returns [BUDGETS] amounts of compute from the cheapest to the most expensive run."""
  return np.geomspace(np.min(compute), np.max(compute), BUDGETS)


def _at_budgets(points: Points, log_budgets: np.ndarray) -> tuple[np.ndarray, ...]:
  """Interpolates the runs of each of k networks at b budgets.

  Returns:
    log(parameters) [k] in ascending order, log(loss) [k, b] and log(epochs) [k, b]; NaN where a
    network has no runs around a budget.
  """
  rows = []
  for name in np.unique(points.names):
    own = np.flatnonzero(points.names == name)
    log_compute, first = np.unique(np.log(points.compute[own]), return_index=True)
    own = own[first]
    curves = [
      np.interp(log_budgets, log_compute, np.log(values[own]), left=np.nan, right=np.nan)
      for values in (points.loss, points.epochs)
    ]
    rows.append((np.log(points.parameters[own[0]]), *curves))
  rows.sort(key=lambda row: row[0])
  sizes, losses, epochs = zip(*rows, strict=True)
  return np.array(sizes), np.array(losses), np.array(epochs)


def _lowest(size: np.ndarray, loss: np.ndarray) -> float | None:
  """Returns the size with the lowest loss; None if it is the smallest or largest."""
  best = int(np.argmin(loss))
  return float(size[best]) if 0 < best < len(size) - 1 else None


def _vertex(size: np.ndarray, loss: np.ndarray) -> float | None:
  """Returns the size at the vertex of a parabola; None if it has no minimum between the sizes."""
  if len(np.unique(size)) < 3:
    return None
  center = size.mean()
  curvature, slope, _ = np.polyfit(size - center, loss, 2)
  if curvature <= 0:
    return None
  vertex = center - slope / (2 * curvature)
  return float(vertex) if size[0] < vertex < size[-1] else None


def _exp(logarithm: np.ndarray | float) -> np.ndarray | float:
  """Returns e^logarithm within the range of floats, which a resample without slope may exceed."""
  return np.exp(np.clip(logarithm, -700, 700))
