"""Confidence intervals of laws and predictions, by bootstrap.

Each resample draws as many runs as there are, with replacement, and everything is fitted anew,
including the choice of the frontier; an interval is the middle 95 % of the results. The interval of
a predicted loss is for one new run: each drawn law is combined with a residual of the law fitted to
all runs, scaled up by the square root of runs over degrees of freedom. Neither interval covers the
possibility that a law has the wrong form; `train.scaling.hold_out` tests that.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from train.scaling.laws.compute_optimum import Optima, budgets_between
from train.scaling.laws.law_set import FORMS, Form, Laws, fit_laws
from train.scaling.points import Points

CONFIDENCE = 0.95
_MINIMAL_DRAWS = 20
"""Smallest number of draws for an interval: with fewer, its ends would be the extremes."""


class ConfidenceInterval(NamedTuple):
  """The middle 95 % of the draws."""

  low: float
  high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bootstrap:
  """Laws of a table and of its resamples.

  Attributes:
    points: runs of the table.
    laws: laws fitted to all runs.
    optima: optima at the budgets to which a law's line is fitted, by field of `Laws`.
    draws: laws fitted to the resamples.
    seed: seed of the resamples.
  """

  points: Points
  laws: Laws
  optima: dict[str, Optima]
  draws: tuple[Laws, ...]
  seed: int

  def interval(self, value: Callable[[Laws], float | None]) -> ConfidenceInterval | None:
    """Returns the interval of any quantity that is computed from the laws.

    Args:
      value: function that computes the quantity from the laws of one resample; None and values that
        are not finite are left out.

    Returns:
      The interval; None if fewer than 20 resamples have the quantity.
    """
    return _interval(self._drawn(value))

  def prediction(
    self, form: Form, compute: float
  ) -> tuple[float, ConfidenceInterval | None] | None:
    """Predicts the loss of the best run of a budget.

    Args:
      form: law to predict with.
      compute: budget.

    Returns:
      The loss, and the interval in which the loss of one new run is expected; None if there is no
      law.
    """
    estimate = form.predict_best(self.laws, compute)
    if estimate is None:
      return None
    drawn = self._drawn(lambda laws: form.predict_best(laws, compute))
    return estimate, _interval(drawn * self._noise(form, (len(drawn),)))

  def predictions(self, form: Form, points: Points) -> tuple[np.ndarray, np.ndarray] | None:
    """Predicts the losses of given runs.

    Args:
      form: law to predict with.
      points: runs, whose losses are not used.

    Returns:
      [n] losses and the [n, 2] intervals in which they are expected, NaN with too few resamples.
      None if there is no law.
    """
    estimates = form.predict(self.laws, points)
    if estimates is None:
      return None
    drawn = [form.predict(laws, points) for laws in self.draws]
    rows = np.array([losses for losses in drawn if losses is not None]).reshape(-1, len(points))
    rows = rows * self._noise(form, rows.shape)
    columns = [_interval(column) or (np.nan, np.nan) for column in rows.T]
    return estimates, np.array(columns)

  def residuals(self, form: Form) -> np.ndarray | None:
    """Returns log(loss / prediction) of the fitted runs, scaled up for the fit's coefficients."""
    runs = form.fitted(self.points)
    predicted = form.predict(self.laws, runs)
    if predicted is None:
      return None
    freedom = max(len(runs) - form.coefficients, 1)
    return np.log(runs.loss / predicted) * np.sqrt(len(runs) / freedom)

  def _drawn(self, value: Callable[[Laws], float | None]) -> np.ndarray:
    """Returns the finite values of a quantity over the resamples."""
    values = [value(laws) for laws in self.draws]
    drawn = np.array([one for one in values if one is not None], dtype=float)
    return drawn[np.isfinite(drawn)]

  def _noise(self, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """Draws factors by which losses of single runs scatter around the law."""
    # Each form has its own random stream, so that no number depends on which others are requested.
    generator = np.random.default_rng((self.seed, 1 + FORMS.index(form)))
    return np.exp(generator.choice(self.residuals(form), size=shape))


def bootstrap_laws(points: Points, *, resamples: int, seed: int) -> Bootstrap:
  """Fits all laws to the runs and to resamples of them.

  Args:
    points: runs.
    resamples: number of resamples; 0 gives no intervals.
    seed: seed of the resamples.
  """
  budgets = budgets_between(points.compute)
  laws, optima = fit_laws(points, budgets)
  generator = np.random.default_rng(seed)
  draws = []
  for _ in tqdm(range(resamples), desc="resamples", leave=False, disable=None):
    rows = generator.integers(0, len(points), len(points))
    draws.append(fit_laws(points.take(rows), budgets, laws)[0])
  return Bootstrap(points=points, laws=laws, optima=optima, draws=tuple(draws), seed=seed)


def _interval(values: np.ndarray) -> ConfidenceInterval | None:
  """Returns the middle 95 % of values; None for too few."""
  if len(values) < _MINIMAL_DRAWS:
    return None
  tail = 50 * (1 - CONFIDENCE)
  return ConfidenceInterval(*map(float, np.percentile(values, [tail, 100 - tail])))
