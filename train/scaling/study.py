"""All scaling laws of a table of runs, with intervals by bootstrap, and how well they predict.

The bootstrap draws as many runs as there are, with replacement, and fits everything anew, the
frontier included; an interval is the middle 95 % of what that gives. That of a predicted loss adds
to each drawn law a residual of the law fitted to all runs, made larger by the root of runs over
degrees of freedom, and so is for one new run. Neither covers that a law is of the wrong form; that
is what holding runs out shows.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from train.scaling.fits import (
  ComputeLaw,
  CostLaw,
  JointLaw,
  Optima,
  OptimumLaw,
  Points,
  Way,
  budgets_between,
  fit_compute_law,
  fit_cost_law,
  fit_irreducible_law,
  fit_joint_law,
  fit_optimum_law,
  frontier,
  interpolated_optima,
  joint_optimum,
)

CONFIDENCE = 0.95
_MINIMAL_DRAWS = 20
"""With fewer, the ends of the middle 95 % would be the extremes."""


class Interval(NamedTuple):
  """The middle 95 %."""

  low: float
  high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laws:
  """Everything that is fitted to one table; None is what it has too few runs for.

  Attributes:
    all_runs: loss against compute, nothing irreducible.
    all_runs_irreducible: the same with an irreducible loss.
    frontier: as all_runs, of the runs that no other matches and beats.
    frontier_irreducible: the same with an irreducible loss.
    joint: loss against size and epochs.
    cost: compute of size and epochs.
    best_network: optimum by Hoffmann's approach 1.
    parabola: by approach 2.
    joint_optimum: by approach 3.
  """

  all_runs: ComputeLaw | None
  all_runs_irreducible: ComputeLaw | None
  frontier: ComputeLaw | None
  frontier_irreducible: ComputeLaw | None
  joint: JointLaw | None
  cost: CostLaw | None
  best_network: OptimumLaw | None
  parabola: OptimumLaw | None
  joint_optimum: OptimumLaw | None


WAYS: dict[str, Way] = {"best_network": "best network", "parabola": "parabola"}
"""Fields of `Laws` whose optimum is interpolated, and how."""
OPTIMA = (*WAYS, "joint_optimum")
"""Fields of `Laws` that hold an optimum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """One of the laws as what predicts losses.

  Attributes:
    field: of `Laws`.
    label: for people.
    short_label: for narrow columns.
    frontier_only: fitted to the frontier, and so for the best run of a budget, not for any run.
    coefficients: that are fitted.
  """

  field: str
  label: str
  short_label: str
  frontier_only: bool
  coefficients: int

  def predict(self, laws: Laws, points: Points) -> np.ndarray | None:
    """Losses of runs, [n] in nats; None where there is no law."""
    law = getattr(laws, self.field)
    if law is None:
      return None
    if isinstance(law, JointLaw):
      return law.loss(points.parameters, points.epochs)
    return law.loss(points.compute)

  def at_best(self, laws: Laws, compute: float) -> float | None:
    """Loss of the best run of a budget, as far as the law tells them apart."""
    law = getattr(laws, self.field)
    if law is None:
      return None
    if not isinstance(law, JointLaw):
      return float(law.loss(compute))
    best = laws.joint_optimum
    return best and float(law.loss(best.parameters(compute), best.epochs(compute)))

  def fitted(self, points: Points) -> Points:
    """The runs that it is fitted to."""
    return points.take(frontier(points.compute, points.loss)) if self.frontier_only else points


FORMS = tuple(
  Form(
    field=field,
    label=label,
    short_label=short_label,
    frontier_only=field.startswith("frontier"),
    coefficients=coefficients,
  )
  for field, label, short_label, coefficients in (
    ("all_runs", "power law, all runs", "all", 2),
    ("all_runs_irreducible", "irreducible loss, all runs", "all + E", 3),
    ("frontier", "power law, frontier", "frontier", 2),
    ("frontier_irreducible", "irreducible loss, frontier", "frontier + E", 3),
    ("joint", "joint law", "joint", 5),
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """Laws of a table and of its resamples.

  Attributes:
    points: runs.
    laws: fitted to them.
    optima: by field of `Laws`, the budgets that its line is fitted to.
    draws: laws fitted to resamples.
    seed: of the resamples.
  """

  points: Points
  laws: Laws
  optima: dict[str, Optima]
  draws: tuple[Laws, ...]
  seed: int

  def interval(self, value: Callable[[Laws], float | None]) -> Interval | None:
    """Of anything that follows from the laws.

    Args:
      value: of the laws of one resample; None and what is not finite are left out.

    Returns:
      None if fewer than 20 resamples have it.
    """
    return _interval(self._drawn(value))

  def prediction(self, form: Form, compute: float) -> tuple[float, Interval | None] | None:
    """Loss of the best run of a budget.

    Args:
      form: law to predict with.
      compute: budget.

    Returns:
      Loss and the interval in which one new run's is expected; None where there is no law.
    """
    estimate = form.at_best(self.laws, compute)
    if estimate is None:
      return None
    drawn = self._drawn(lambda laws: form.at_best(laws, compute))
    return estimate, _interval(drawn * self._noise(form, (len(drawn),)))

  def predictions(self, form: Form, points: Points) -> tuple[np.ndarray, np.ndarray] | None:
    """Losses of given runs.

    Args:
      form: law to predict with.
      points: runs; their losses are not looked at.

    Returns:
      [n] losses and the [n, 2] intervals in which they are expected, NaN with too few resamples.
      None where there is no law.
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
    """log(loss / prediction) of the fitted runs, scaled up for the freedom that the fit took."""
    runs = form.fitted(self.points)
    predicted = form.predict(self.laws, runs)
    if predicted is None:
      return None
    freedom = max(len(runs) - form.coefficients, 1)
    return np.log(runs.loss / predicted) * np.sqrt(len(runs) / freedom)

  def _drawn(self, value: Callable[[Laws], float | None]) -> np.ndarray:
    values = [value(laws) for laws in self.draws]
    drawn = np.array([one for one in values if one is not None], dtype=float)
    return drawn[np.isfinite(drawn)]

  def _noise(self, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """Factors of losses."""
    # A stream of its own for each form, so that no figure depends on which others are asked for.
    generator = np.random.default_rng((self.seed, 1 + FORMS.index(form)))
    return np.exp(generator.choice(self.residuals(form), size=shape))


def fit_laws(
  points: Points, budgets: np.ndarray, start: Laws | None = None
) -> tuple[Laws, dict[str, Optima]]:
  """Fits everything.

  Args:
    points: runs.
    budgets: [b] at which networks are compared.
    start: laws of similar runs, to start the iterations from.

  Returns:
    Laws, and for those of `WAYS` the optima that they are lines through.
  """
  best = points.take(frontier(points.compute, points.loss))
  joint, cost = fit_joint_law(points, start and start.joint), fit_cost_law(points)
  optima = {field: interpolated_optima(points, way, budgets) for field, way in WAYS.items()}
  laws = Laws(
    all_runs=fit_compute_law(points.compute, points.loss),
    all_runs_irreducible=fit_irreducible_law(
      points.compute, points.loss, start and start.all_runs_irreducible
    ),
    frontier=fit_compute_law(best.compute, best.loss),
    frontier_irreducible=fit_irreducible_law(
      best.compute, best.loss, start and start.frontier_irreducible
    ),
    joint=joint,
    cost=cost,
    joint_optimum=joint_optimum(joint, cost) if joint and cost else None,
    **{field: fit_optimum_law(found) for field, found in optima.items()},
  )
  return laws, optima


def study(points: Points, *, resamples: int, seed: int) -> Study:
  """Fits everything to the runs and to resamples of them.

  Args:
    points: runs.
    resamples: of the bootstrap; 0 gives no intervals.
    seed: of the resamples.
  """
  budgets = budgets_between(points.compute)
  laws, optima = fit_laws(points, budgets)
  generator = np.random.default_rng(seed)
  draws = []
  for _ in tqdm(range(resamples), desc="resamples", leave=False, disable=None):
    rows = generator.integers(0, len(points), len(points))
    draws.append(fit_laws(points.take(rows), budgets, laws)[0])
  return Study(points=points, laws=laws, optima=optima, draws=tuple(draws), seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """Of the held-out runs by one form or baseline.

  Attributes:
    label: for people.
    short_label: for narrow columns.
    frontier_only: meant for the runs on the frontier.
    losses: [n] nats; NaN where it says nothing.
    intervals: [n, 2] of one new run's loss; None without.
  """

  label: str
  short_label: str
  frontier_only: bool
  losses: np.ndarray
  intervals: np.ndarray | None

  def errors(self, points: Points) -> np.ndarray:
    """Predicted - measured, [n] in nats."""
    return self.losses - points.loss

  def inside(self, points: Points) -> np.ndarray | None:
    """[n] of bool: whether the measured loss is in its interval."""
    if self.intervals is None:
      return None
    return (self.intervals[:, 0] <= points.loss) & (points.loss <= self.intervals[:, 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Runs of many epochs, predicted from those of few.

  Attributes:
    epochs: up to which runs were fitted.
    fitted_runs: as many.
    points: the held-out runs.
    on_frontier: [n] of bool: on the frontier of all runs.
    predictions: of each form, and of the baselines last.
  """

  epochs: float
  fitted_runs: int
  points: Points
  on_frontier: np.ndarray
  predictions: tuple[Prediction, ...]


def hold_out(points: Points, epochs: float, *, resamples: int, seed: int) -> HeldOut:
  """Fits to the runs up to a number of epochs and predicts the others.

  Baselines are each network's last fitted loss carried forward, and the line through its own fitted
  runs in log(loss) against log(compute).

  Args:
    points: runs, some of them beyond `epochs`.
    epochs: the last that is fitted.
    resamples: of the bootstrap.
    seed: of it.
  """
  is_fitted = points.epochs <= epochs
  fitted, held_out = points.take(is_fitted), points.take(~is_fitted)
  done = study(fitted, resamples=resamples, seed=seed)
  predictions = []
  for form in FORMS:
    found = done.predictions(form, held_out)
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
  return np.full(len(compute), own.loss[np.argmax(own.epochs)])


def _own_line(own: Points, compute: np.ndarray) -> np.ndarray:
  law = fit_compute_law(own.compute, own.loss)
  return np.full(len(compute), np.nan) if law is None else law.loss(compute)


def _interval(values: np.ndarray) -> Interval | None:
  if len(values) < _MINIMAL_DRAWS:
    return None
  tail = 50 * (1 - CONFIDENCE)
  return Interval(*map(float, np.percentile(values, [tail, 100 - tail])))
