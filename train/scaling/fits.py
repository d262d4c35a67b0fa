"""Scaling laws fitted to runs: loss against compute, against size and epochs, and the best of both.

Sources: Hoffmann et al., "Training Compute-Optimal Large Language Models"
(https://arxiv.org/abs/2203.15556), for the joint law and the three ways to the optimum, which they
call approaches 1, 2 and 3; paper A (https://arxiv.org/abs/2310.16764) for epochs in the place of
tokens. Everything is fitted to logarithms of the loss, so a residual is a relative error.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import least_squares

# Huber's: 95 % as efficient as least squares where errors are normal. Hoffmann et al. take 1e-3,
# which is far below the scatter of a few dozen runs and makes the fit one of absolute errors.
_HUBER_IN_DEVIATIONS = 1.345
# Of a median absolute deviation, to the standard deviation of a normal distribution.
_DEVIATION_PER_MAD = 1.4826
MINIMAL_DEVIATION = 1e-5
"""Relative: losses are known to no better, and exact ones would have a scatter of 0."""
_SCALE_ROUNDS = 10

_MAXIMAL_EXPONENT = 5.0
_START_IRREDUCIBLE_SHARES = (0.1, 0.5, 0.9)
_START_EXPONENTS = (0.1, 0.5, 1.5)

BUDGETS = 60
"""At which networks are compared, evenly spaced in the logarithm of compute."""
MINIMAL_NETWORKS_A_BUDGET = 3
"""Fewer have no best one that is neither the smallest nor the largest."""
MINIMAL_BUDGETS = 3
MINIMAL_RUNS = 3
MINIMAL_RUNS_IRREDUCIBLE = 5
MINIMAL_RUNS_JOINT = 8
MINIMAL_SETTINGS_JOINT = 3
"""Sizes, and epochs: two would leave the irreducible loss open."""

Way = Literal["best network", "parabola"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
  """Runs as arrays, one entry a run.

  Attributes:
    names: [n] of the networks.
    parameters: [n] trained scalars.
    epochs: [n] passes over the training data.
    compute: [n] in any unit.
    loss: [n] held-out, nats.
  """

  names: np.ndarray
  parameters: np.ndarray
  epochs: np.ndarray
  compute: np.ndarray
  loss: np.ndarray

  def __len__(self) -> int:
    return len(self.loss)

  def take(self, rows: np.ndarray) -> "Points":
    """Some of them.

    Args:
      rows: indices, in which one may come twice, or a mask.
    """
    fields = dataclasses.fields(self)
    return Points(**{field.name: getattr(self, field.name)[rows] for field in fields})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeLaw:
  """loss = irreducible_loss + coefficient * compute^-exponent.

  Attributes:
    irreducible_loss: nats; 0 where it was not fitted.
    coefficient: nats, where compute is 1.
    exponent: positive where compute helps.
    huber_scale: relative error from which a run counts linearly; None after least squares.
  """

  irreducible_loss: float
  coefficient: float
  exponent: float
  huber_scale: float | None = None

  def loss(self, compute: np.ndarray | float) -> np.ndarray | float:
    """In nats."""
    return self.irreducible_loss + self.coefficient * compute**-self.exponent


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointLaw:
  """loss = irreducible_loss + size_coefficient * parameters^-size_exponent + the same of epochs.

  Attributes:
    irreducible_loss: nats, of an unlimited network with unlimited data.
    size_coefficient: nats, of one parameter.
    size_exponent: of parameters.
    epochs_coefficient: nats, of one epoch.
    epochs_exponent: of epochs.
    huber_scale: relative error from which a run counts linearly.
  """

  irreducible_loss: float
  size_coefficient: float
  size_exponent: float
  epochs_coefficient: float
  epochs_exponent: float
  huber_scale: float

  def loss(self, parameters: np.ndarray | float, epochs: np.ndarray | float) -> np.ndarray | float:
    """In nats."""
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

  def epochs(self, parameters: np.ndarray | float, compute: np.ndarray | float):
    """That compute pays for."""
    return compute / (self.coefficient * parameters**self.exponent)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimumLaw:
  """The best size and the best number of epochs, both a power of compute.

  Attributes:
    log_parameters: intercept of log(parameters) against log(compute).
    size_exponent: slope of it.
    log_epochs: intercept of log(epochs).
    epochs_exponent: slope of it.
  """

  log_parameters: float
  size_exponent: float
  log_epochs: float
  epochs_exponent: float

  def parameters(self, compute: np.ndarray | float) -> np.ndarray | float:
    """Of the best network."""
    return _exp(self.log_parameters + self.size_exponent * np.log(compute))

  def epochs(self, compute: np.ndarray | float) -> np.ndarray | float:
    """Best for that network."""
    return _exp(self.log_epochs + self.epochs_exponent * np.log(compute))

  @property
  def one_epoch_compute(self) -> float:
    """Above which more than one epoch is best; NaN where epochs do not grow."""
    if self.epochs_exponent <= 0:
      return float("nan")
    return float(_exp(-self.log_epochs / self.epochs_exponent))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optima:
  """The best size and epochs at several budgets, as [m] arrays."""

  compute: np.ndarray
  parameters: np.ndarray
  epochs: np.ndarray


def frontier(compute: np.ndarray, loss: np.ndarray) -> np.ndarray:
  """Mask of the runs that no other run matches in loss and compute and beats in one of them.

  Args:
    compute: [n].
    loss: [n].

  Returns:
    [n] of bool; equal runs are all on it or all not.
  """
  cheaper = compute[None] <= compute[:, None]
  better = loss[None] <= loss[:, None]
  strictly = (compute[None] < compute[:, None]) | (loss[None] < loss[:, None])
  return ~np.any(cheaper & better & strictly, axis=1)


def fit_compute_law(compute: np.ndarray, loss: np.ndarray) -> ComputeLaw | None:
  """log(loss) linear in log(compute), by least squares; nothing is irreducible.

  Args:
    compute: [n].
    loss: [n], nats.

  Returns:
    None for fewer than three different amounts of compute.
  """
  if len(np.unique(compute)) < MINIMAL_RUNS:
    return None
  slope, intercept = _line(np.log(compute), np.log(loss))
  return ComputeLaw(irreducible_loss=0.0, coefficient=float(np.exp(intercept)), exponent=-slope)


def fit_irreducible_law(
  compute: np.ndarray, loss: np.ndarray, start: ComputeLaw | None = None
) -> ComputeLaw | None:
  """loss = E + A * compute^-alpha with 0 <= E < min(loss), by Huber's loss of log residuals.

  Args:
    compute: [n].
    loss: [n], nats.
    start: a fit to similar runs, whose scale is kept; None looks for both from several starts.

  Returns:
    None for fewer than five different amounts of compute.
  """
  if len(np.unique(compute)) < MINIMAL_RUNS_IRREDUCIBLE:
    return None
  logs = np.log(compute)[:, None]
  known = start and _Powers(
    start.irreducible_loss, np.log([start.coefficient]), np.array([start.exponent])
  )
  powers, scale = _fit_powers(logs, loss, known, start and start.huber_scale)
  return ComputeLaw(
    irreducible_loss=powers.irreducible,
    coefficient=float(np.exp(powers.log_coefficients[0])),
    exponent=float(powers.exponents[0]),
    huber_scale=scale,
  )


def fit_joint_law(points: Points, start: JointLaw | None = None) -> JointLaw | None:
  """Hoffmann's approach 3, with epochs for tokens, by Huber's loss of log residuals.

  Args:
    points: runs.
    start: a fit to similar runs, whose scale is kept; None looks for both from several starts.

  Returns:
    None for fewer than eight different runs, three sizes or three numbers of epochs.
  """
  settings = np.unique(np.stack([points.parameters, points.epochs]), axis=1)
  if (
    settings.shape[1] < MINIMAL_RUNS_JOINT
    or len(np.unique(settings[0])) < MINIMAL_SETTINGS_JOINT
    or len(np.unique(settings[1])) < MINIMAL_SETTINGS_JOINT
  ):
    return None
  logs = np.log(np.stack([points.parameters, points.epochs], axis=1))
  known = start and _Powers(
    start.irreducible_loss,
    np.log([start.size_coefficient, start.epochs_coefficient]),
    np.array([start.size_exponent, start.epochs_exponent]),
  )
  powers, scale = _fit_powers(logs, points.loss, known, start and start.huber_scale)
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
  """log(compute / epochs) linear in log(parameters), by least squares.

  Args:
    points: runs.

  Returns:
    None for networks of one size.
  """
  if len(np.unique(points.parameters)) < 2:
    return None
  slope, intercept = _line(np.log(points.parameters), np.log(points.compute / points.epochs))
  return CostLaw(coefficient=float(np.exp(intercept)), exponent=slope)


def joint_optimum(joint: JointLaw, cost: CostLaw) -> OptimumLaw | None:
  """Where the joint law is lowest for given compute, in closed form.

  With loss E + A/N^a + B/D^b and compute k * N^c * D, the derivative by log N vanishes where
  a * A / N^a = b * c * B / D^b, so N^(a + bc) = a * A / (b * c * B) * (compute / k)^b.

  Args:
    joint: law.
    cost: of an epoch.

  Returns:
    None where one of both costs or gains nothing, so that there is no optimum between them.
  """
  a, b, c = joint.size_exponent, joint.epochs_exponent, cost.exponent
  gains = (a * joint.size_coefficient, b * c * joint.epochs_coefficient)
  # Bounds of the fit are reached up to rounding only.
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
  """Hoffmann's approaches 1 and 2: networks compared at equal compute.

  Each network's loss and epochs are interpolated between its runs, linearly in logarithms, and
  never beyond them. "best network" takes the one with the lowest loss, "parabola" the vertex of a
  parabola through log(loss) against log(parameters). A budget where the best one is the smallest or
  largest of those that have runs around it, or the vertex is outside of them, says only that the
  optimum is not between them, and is left out; so is one with fewer than three networks.

  Args:
    points: runs.
    way: how the optimum is found.
    budgets: [b] of compute.

  Returns:
    At those budgets that have an optimum.
  """
  found = []
  if len(np.unique(points.names)) < MINIMAL_NETWORKS_A_BUDGET:
    budgets = budgets[:0]
  sizes, losses, epochs = _at_budgets(points, np.log(budgets))
  for column in range(len(budgets)):
    there = np.isfinite(losses[:, column])
    if there.sum() < MINIMAL_NETWORKS_A_BUDGET:
      continue
    size, loss, epoch = sizes[there], losses[there, column], epochs[there, column]
    best = _vertex(size, loss) if way == "parabola" else _lowest(size, loss)
    if best is not None:
      found.append((budgets[column], np.exp(best), np.exp(np.interp(best, size, epoch))))
  compute, parameters, best_epochs = np.array(found).reshape(-1, 3).T
  return Optima(compute=compute, parameters=parameters, epochs=best_epochs)


def fit_optimum_law(optima: Optima) -> OptimumLaw | None:
  """Lines through log(parameters) and log(epochs) against log(compute), by least squares.

  Args:
    optima: at several budgets.

  Returns:
    None for fewer than three budgets.
  """
  if len(optima.compute) < MINIMAL_BUDGETS:
    return None
  log_compute = np.log(optima.compute)
  size_exponent, log_parameters = _line(log_compute, np.log(optima.parameters))
  epochs_exponent, log_epochs = _line(log_compute, np.log(optima.epochs))
  return OptimumLaw(
    log_parameters=log_parameters,
    size_exponent=size_exponent,
    log_epochs=log_epochs,
    epochs_exponent=epochs_exponent,
  )


def budgets_between(compute: Sequence[float] | np.ndarray) -> np.ndarray:
  """From the cheapest to the dearest run: [BUDGETS] of compute."""
  return np.geomspace(np.min(compute), np.max(compute), BUDGETS)


def _at_budgets(points: Points, log_budgets: np.ndarray) -> tuple[np.ndarray, ...]:
  """log(parameters) [k], ascending, and log(loss) and log(epochs) [k, b]; NaN where none is."""
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
  best = int(np.argmin(loss))
  return float(size[best]) if 0 < best < len(size) - 1 else None


def _vertex(size: np.ndarray, loss: np.ndarray) -> float | None:
  if len(np.unique(size)) < 3:
    return None
  center = size.mean()
  curvature, slope, _ = np.polyfit(size - center, loss, 2)
  if curvature <= 0:
    return None
  vertex = center - slope / (2 * curvature)
  return float(vertex) if size[0] < vertex < size[-1] else None


def _exp(logarithm: np.ndarray | float) -> np.ndarray | float:
  """A resample with hardly any slope can put an optimum beyond what a float holds."""
  return np.exp(np.clip(logarithm, -700, 700))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Slope and intercept, by least squares."""
  centered = x - x.mean()
  slope = float(centered @ (y - y.mean()) / (centered @ centered))
  return slope, float(y.mean() - slope * x.mean())


@dataclasses.dataclass(frozen=True)
class _Powers:
  """irreducible + sum over k of exp(log_coefficients[k] - exponents[k] * logs[k])."""

  irreducible: float
  log_coefficients: np.ndarray
  exponents: np.ndarray


def _fit_powers(
  logs: np.ndarray, loss: np.ndarray, start: _Powers | None, scale: float | None
) -> tuple[_Powers, float]:
  """Fits by Huber's loss of log residuals.

  Args:
    logs: [n, k] logarithms of what the loss falls with.
    loss: [n], nats.
    start: None takes the best of several.
    scale: of Huber's loss; None takes it from the residuals, in turns with the fit.

  Returns:
    The fit and the scale.
  """
  center = logs.mean(axis=0)
  terms = logs.shape[1]
  count = 1 + 2 * terms
  # At the center a term is at most the largest loss; the other bounds keep what is fitted positive.
  lower = np.array([0.0] + [-30.0, 0.0] * terms)
  upper = np.array([loss.min()] + [np.log(loss.max()) + 1, _MAXIMAL_EXPONENT] * terms)
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
    # Strictly inside, as the solver requires, and far enough that it can leave the bound again.
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
  powers = _Powers(float(vector[0]), vector[1::2] + vector[2::2] * center, vector[2::2])
  return powers, scale


def _starts(loss: np.ndarray, terms: int) -> list[np.ndarray]:
  """Shares of the lowest loss that may be irreducible, by exponents of each term."""
  starts = []
  for share in _START_IRREDUCIBLE_SHARES:
    coefficient = np.log((np.median(loss) - share * loss.min()) / terms)
    for exponents in np.stack(np.meshgrid(*[_START_EXPONENTS] * terms), axis=-1).reshape(-1, terms):
      term = [value for exponent in exponents for value in (coefficient, exponent)]
      starts.append(np.array([share * loss.min(), *term]))
  return starts


def _huber_scale(residuals: np.ndarray, count: int) -> float:
  """A few residuals are 0 because the fit has `count` parameters; the root makes up for them."""
  mad = np.median(np.abs(residuals - np.median(residuals)))
  freedom = max(len(residuals) - count, 1)
  deviation = _DEVIATION_PER_MAD * mad * np.sqrt(len(residuals) / freedom)
  return float(_HUBER_IN_DEVIATIONS * max(deviation, MINIMAL_DEVIATION))
