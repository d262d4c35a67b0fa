"""Loss as a joint law of size and epochs, and compute as a law of both.

This is approach 3 of Hoffmann et al., "Training Compute-Optimal Large Language Models"
(https://arxiv.org/abs/2203.15556), with epochs in place of tokens, as in paper A
(https://arxiv.org/abs/2310.16764).
"""

import dataclasses

import numpy as np

from train.scaling.laws.regression import (
  MAXIMAL_EXPONENT,
  PowerSum,
  fit_line,
  fit_power_sum,
)
from train.scaling.points import Points

MINIMAL_RUNS_JOINT = 8
MINIMAL_SETTINGS_JOINT = 3
"""Fewest different sizes, and epochs, for a fit: two would leave the irreducible loss
undetermined."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointLaw:
  """loss = irreducible_loss + size_coefficient * parameters^-size_exponent + the same of epochs.

  Attributes:
    irreducible_loss: loss in nats of an unlimited network with unlimited data.
    size_coefficient: nats that a network of one parameter would add.
    size_exponent: exponent of parameters.
    epochs_coefficient: nats that training for one epoch adds.
    epochs_exponent: exponent of epochs.
    huber_scale: relative error above which a run counts linearly.
  """

  irreducible_loss: float
  size_coefficient: float
  size_exponent: float
  epochs_coefficient: float
  epochs_exponent: float
  huber_scale: float

  def loss(self, parameters: np.ndarray | float, epochs: np.ndarray | float) -> np.ndarray | float:
    """Returns the predicted loss in nats."""
    return (
      self.irreducible_loss
      + self.size_coefficient * parameters**-self.size_exponent
      + self.epochs_coefficient * epochs**-self.epochs_exponent
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostLaw:
  """compute = coefficient * parameters^exponent * epochs."""

  coefficient: float
  exponent: float


def fit_joint_law(points: Points, start: JointLaw | None = None) -> JointLaw | None:
  """Fits the joint law by Huber's loss of log residuals.

  Args:
    points: runs.
    start: a fit to similar runs, whose scale is kept; None tries several starts and estimates the
      scale.

  Returns:
    The law; None for fewer than eight different runs, three sizes or three numbers of epochs.
  """
  settings = np.unique(np.stack([points.parameters, points.epochs]), axis=1)
  if (
    settings.shape[1] < MINIMAL_RUNS_JOINT
    or len(np.unique(settings[0])) < MINIMAL_SETTINGS_JOINT
    or len(np.unique(settings[1])) < MINIMAL_SETTINGS_JOINT
  ):
    return None
  logs = np.log(np.stack([points.parameters, points.epochs], axis=1))
  known = start and PowerSum(
    irreducible=start.irreducible_loss,
    log_coefficients=np.log([start.size_coefficient, start.epochs_coefficient]),
    exponents=np.array([start.size_exponent, start.epochs_exponent]),
  )
  powers, scale = fit_power_sum(logs, points.loss, known, start and start.huber_scale)
  size_coefficient, epochs_coefficient = np.exp(powers.log_coefficients)
  return JointLaw(
    irreducible_loss=powers.irreducible,
    size_coefficient=float(size_coefficient),
    size_exponent=float(powers.exponents[0]),
    epochs_coefficient=float(epochs_coefficient),
    epochs_exponent=float(powers.exponents[1]),
    huber_scale=scale,
  )


def fit_cost_law(points: Points) -> CostLaw | None:
  """Fits log(compute / epochs) as a line in log(parameters) by least squares.

  Args:
    points: runs.

  Returns:
    The law; None if all networks have one size, or the exponent is beyond `MAXIMAL_EXPONENT`.
  """
  if len(np.unique(points.parameters)) < 2:
    return None
  slope, intercept = fit_line(np.log(points.parameters), np.log(points.compute / points.epochs))
  if abs(slope) > MAXIMAL_EXPONENT:
    return None
  return CostLaw(coefficient=float(np.exp(intercept)), exponent=slope)
