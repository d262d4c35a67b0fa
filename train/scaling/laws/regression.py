"""Fitting methods: straight lines by least squares, and sums of power laws by Huber's loss.

Laws are fitted to logarithms of the loss, so a residual is a relative error.
"""

import dataclasses

import numpy as np
from scipy.optimize import least_squares

# Huber's own choice: 95 % as efficient as least squares if errors are normal. Hoffmann et al. take
# 1e-3, which is far below the scatter of a few dozen runs, so the fit would minimize absolute
# errors.
_HUBER_IN_DEVIATIONS = 1.345
# Converts a median absolute deviation to the standard deviation of a normal distribution.
_DEVIATION_PER_MAD = 1.4826
MINIMAL_DEVIATION = 1e-5
"""Smallest relative scatter assumed: losses are not known better, and exact data has none."""
_SCALE_ROUNDS = 10
# Fits to losses that follow the law take up to 115, but where they do not, the best exponent may be
# anywhere, and the solver would search for it for a minute over all resamples.
_EVALUATIONS_MAX = 120

MAXIMAL_EXPONENT = 5.0
_START_IRREDUCIBLE_SHARES = (0.1, 0.5, 0.9)
_START_EXPONENTS = (0.1, 0.5, 1.5)


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Fits y = slope * x + intercept by least squares.

  Args:
    x: [n] values, not all equal.
    y: [n] values.

  Returns:
    Slope and intercept.
  """
  centered = x - x.mean()
  slope = float(centered @ (y - y.mean()) / (centered @ centered))
  return slope, float(y.mean() - slope * x.mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerSum:
  """loss = irreducible + sum over k of exp(log_coefficients[k] - exponents[k] * logs[k]).

  Attributes:
    irreducible: constant term, in nats.
    log_coefficients: [k] logarithms of the coefficients.
    exponents: [k] exponents, which are not negative.
  """

  irreducible: float
  log_coefficients: np.ndarray
  exponents: np.ndarray


def fit_power_sum(
  logs: np.ndarray, loss: np.ndarray, start: PowerSum | None, scale: float | None
) -> tuple[PowerSum, float]:
  """Fits a sum of power laws by Huber's loss of the logarithmic residuals.

  Args:
    logs: [n, k] logarithms of the quantities that the loss falls with.
    loss: [n] losses in nats.
    start: where the iteration begins; None tries several starts and takes the best fit.
    scale: scale of Huber's loss; None estimates it from the residuals, alternating with the fit.

  Returns:
    The fit and the scale.
  """
  center = logs.mean(axis=0)
  terms = logs.shape[1]
  count = 1 + 2 * terms
  # At the center of the data, a term is at most the largest loss; the other bounds keep the terms
  # positive.
  lower = np.array([0.0] + [-30.0, 0.0] * terms)
  upper = np.array([loss.min()] + [np.log(loss.max()) + 1, MAXIMAL_EXPONENT] * terms)
  log_loss = np.log(loss)

  def parts(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    powers = np.exp(vector[1::2] - vector[2::2] * (logs - center))
    return powers, vector[0] + powers.sum(axis=1)

  def residuals(vector: np.ndarray) -> np.ndarray:
    return np.log(parts(vector)[1]) - log_loss

  def jacobian(vector: np.ndarray) -> np.ndarray:
    powers, total = parts(vector)
    columns = np.empty((len(loss), count))
    columns[:, 0] = 1
    columns[:, 1::2] = powers
    columns[:, 2::2] = -(logs - center) * powers
    return columns / total[:, None]

  def solve(vector: np.ndarray, huber_scale: float | None):
    # The solver requires a start strictly inside the bounds. From this far inside, it can also move
    # away from a bound.
    margin = 1e-3 * (upper - lower)
    inside = np.clip(vector, lower + margin, upper - margin)
    return least_squares(
      residuals,
      inside,
      jac=jacobian,
      bounds=(lower, upper),
      x_scale="jac",
      loss="huber" if huber_scale else "linear",
      f_scale=huber_scale or 1.0,
      max_nfev=_EVALUATIONS_MAX,
    )

  if start is None:
    fits = [solve(vector, scale) for vector in _starts(loss, terms)]
    solution = min(fits, key=lambda fit: fit.cost)
  else:
    coefficients = start.log_coefficients - start.exponents * center
    vector = np.concatenate(
      [[start.irreducible], np.stack([coefficients, start.exponents], axis=1).ravel()]
    )
    solution = solve(vector, scale)
  if scale is None:
    for _ in range(_SCALE_ROUNDS):
      previous, scale = scale, _huber_scale(solution.fun, count)
      if previous and abs(scale / previous - 1) < 1e-3:
        break
      solution = solve(solution.x, scale)
  vector = solution.x
  powers = PowerSum(
    irreducible=float(vector[0]),
    log_coefficients=vector[1::2] + vector[2::2] * center,
    exponents=vector[2::2],
  )
  return powers, scale


def _starts(loss: np.ndarray, terms: int) -> list[np.ndarray]:
  """Combines several irreducible shares of the lowest loss with several exponents of each term."""
  starts = []
  for share in _START_IRREDUCIBLE_SHARES:
    coefficient = np.log((np.median(loss) - share * loss.min()) / terms)
    for exponents in np.stack(np.meshgrid(*[_START_EXPONENTS] * terms), axis=-1).reshape(-1, terms):
      term = [value for exponent in exponents for value in (coefficient, exponent)]
      starts.append(np.array([share * loss.min(), *term]))
  return starts


def _huber_scale(residuals: np.ndarray, count: int) -> float:
  """Estimates the scale from the residuals of a fit with `count` parameters.

  Such a fit makes about `count` residuals vanish; the square root corrects for that.
  """
  mad = np.median(np.abs(residuals - np.median(residuals)))
  freedom = max(len(residuals) - count, 1)
  deviation = _DEVIATION_PER_MAD * mad * np.sqrt(len(residuals) / freedom)
  return float(_HUBER_IN_DEVIATIONS * max(deviation, MINIMAL_DEVIATION))
