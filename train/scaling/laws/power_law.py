"""Loss as a power of compute, with or without an irreducible loss."""

import dataclasses

import numpy as np

from train.scaling.laws.regression import (
  MAXIMAL_EXPONENT,
  PowerSum,
  fit_line,
  fit_power_sum,
)

MINIMAL_RUNS = 3
MINIMAL_RUNS_IRREDUCIBLE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeLaw:
  """loss = irreducible_loss + coefficient * compute^-exponent.

  Attributes:
    irreducible_loss: limit of the loss in nats; 0 if it was not fitted.
    coefficient: reducible loss in nats if compute is 1.
    exponent: exponent of compute, positive if compute helps.
    huber_scale: relative error above which a run counts linearly; None after least squares.
  """

  irreducible_loss: float
  coefficient: float
  exponent: float
  huber_scale: float | None = None

  def loss(self, compute: np.ndarray | float) -> np.ndarray | float:
    """Returns the predicted loss in nats."""
    return self.irreducible_loss + self.coefficient * compute**-self.exponent


def fit_compute_law(compute: np.ndarray, loss: np.ndarray) -> ComputeLaw | None:
  """Fits log(loss) as a line in log(compute) by least squares, without an irreducible loss.

  Args:
    compute: [n] training compute.
    loss: [n] losses in nats.

  Returns:
    The law; None for fewer than three different amounts of compute, or an exponent beyond
    `MAXIMAL_EXPONENT`, which is not a law but noise of runs of almost the same compute.
  """
  if len(np.unique(compute)) < MINIMAL_RUNS:
    return None
  slope, intercept = fit_line(np.log(compute), np.log(loss))
  if abs(slope) > MAXIMAL_EXPONENT:
    return None
  return ComputeLaw(irreducible_loss=0.0, coefficient=float(np.exp(intercept)), exponent=-slope)


def fit_irreducible_law(
  compute: np.ndarray, loss: np.ndarray, start: ComputeLaw | None = None
) -> ComputeLaw | None:
  """Fits loss = E + A * compute^-alpha, 0 <= E < min(loss), by Huber's loss of log residuals.

  Args:
    compute: [n] training compute.
    loss: [n] losses in nats.
    start: a fit to similar runs, whose scale is kept; None tries several starts and estimates the
      scale.

  Returns:
    The law; None for fewer than five different amounts of compute.
  """
  if len(np.unique(compute)) < MINIMAL_RUNS_IRREDUCIBLE:
    return None
  known = start and PowerSum(
    irreducible=start.irreducible_loss,
    log_coefficients=np.log([start.coefficient]),
    exponents=np.array([start.exponent]),
  )
  powers, scale = fit_power_sum(np.log(compute)[:, None], loss, known, start and start.huber_scale)
  return ComputeLaw(
    irreducible_loss=powers.irreducible,
    coefficient=float(np.exp(powers.log_coefficients[0])),
    exponent=float(powers.exponents[0]),
    huber_scale=scale,
  )
