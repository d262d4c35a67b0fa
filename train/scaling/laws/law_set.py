"""All laws of held-out loss that are fitted to one table of runs."""

import dataclasses

import numpy as np

from train.scaling.laws.compute_optimum import (
  Optima,
  OptimumLaw,
  Way,
  fit_optimum_law,
  interpolated_optima,
  joint_optimum,
)
from train.scaling.laws.joint_law import CostLaw, JointLaw, fit_cost_law, fit_joint_law
from train.scaling.laws.power_law import ComputeLaw, fit_compute_law, fit_irreducible_law
from train.scaling.points import Points, frontier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laws:
  """The laws of one table; None where the table has too few runs.

  Attributes:
    all_runs: loss against compute, without an irreducible loss.
    all_runs_irreducible: loss against compute, with an irreducible loss.
    frontier: as `all_runs`, but fitted to the runs on the frontier only.
    frontier_irreducible: as `all_runs_irreducible`, but fitted to the frontier only.
    joint: loss against size and epochs.
    cost: compute against size and epochs.
    best_network: compute optimum by Hoffmann's approach 1.
    parabola: compute optimum by approach 2.
    joint_optimum: compute optimum by approach 3.
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
"""Fields of `Laws` whose optimum is interpolated, each with the way of interpolation."""
OPTIMA = (*WAYS, "joint_optimum")
"""Fields of `Laws` that hold a compute optimum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """One of the laws as a predictor of losses.

  Attributes:
    field: name of the law's field in `Laws`.
    label: name for people.
    short_label: name for narrow columns.
    frontier_only: whether it is fitted to the frontier, and so predicts the best run of a budget
      and not any run.
    coefficients: number of coefficients fitted.
  """

  field: str
  label: str
  short_label: str
  frontier_only: bool
  coefficients: int

  def predict(self, laws: Laws, points: Points) -> np.ndarray | None:
    """Returns the [n] predicted losses of runs in nats; None if there is no law."""
    law = getattr(laws, self.field)
    if law is None:
      return None
    if isinstance(law, JointLaw):
      return law.loss(points.parameters, points.epochs)
    return law.loss(points.compute)

  def predict_best(self, laws: Laws, compute: float) -> float | None:
    """Returns the predicted loss of the best run of a budget; None if there is no law.

    A law of compute alone predicts the same loss for all runs of a budget.
    """
    law = getattr(laws, self.field)
    if law is None:
      return None
    if not isinstance(law, JointLaw):
      return float(law.loss(compute))
    best = laws.joint_optimum
    return best and float(law.loss(best.parameters(compute), best.epochs(compute)))

  def fitted(self, points: Points) -> Points:
    """Returns the runs that the law is fitted to."""
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


def fit_laws(
  points: Points, budgets: np.ndarray, start: Laws | None = None
) -> tuple[Laws, dict[str, Optima]]:
  """Fits all laws.

  Args:
    points: runs.
    budgets: [b] amounts of compute at which networks are compared.
    start: laws of similar runs from which the iterations begin.

  Returns:
    The laws, and the optima that their lines are fitted to, by field of `WAYS`.
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
