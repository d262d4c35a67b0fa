import dataclasses

import numpy as np
import pytest

from tests.train.scaling.scaling_runs import COST, EPOCHS, JOINT, joint_points, with_loss
from train.scaling.fits import (
  CostLaw,
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

COMPUTE = np.geomspace(1e3, 1e5, 12)


def test_frontier_by_hand():
  compute = np.array([1.0, 2, 2.5, 3, 3, 4, 4, 5, 6])
  loss = np.array([9.0, 8, 8, 7, 7.5, 6, 6, 7, 5])
  # Not on it: dearer than another and no better; as dear and worse; dearer and worse.
  off = [2, 4, 7]
  assert np.flatnonzero(~frontier(compute, loss)).tolist() == off


def test_power_law_is_recovered():
  law = fit_compute_law(COMPUTE, 4 * COMPUTE**-0.05)
  assert law.exponent == pytest.approx(0.05)
  assert law.coefficient == pytest.approx(4)
  assert law.irreducible_loss == 0
  assert law.loss(2e5) == pytest.approx(4 * 2e5**-0.05)


@pytest.mark.parametrize("irreducible", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("exponent", [0.1, 0.4])
def test_irreducible_loss_is_recovered(irreducible, exponent):
  law = fit_irreducible_law(COMPUTE, irreducible + 3 * COMPUTE**-exponent)
  # A curve so flat leaves the rest to the last digits.
  assert law.irreducible_loss == pytest.approx(irreducible, abs=0.02)
  assert law.exponent == pytest.approx(exponent, rel=0.03)


def test_joint_law_is_recovered():
  law = fit_joint_law(joint_points())
  for field in ("irreducible_loss", "size_exponent", "epochs_exponent", "epochs_coefficient"):
    assert getattr(law, field) == pytest.approx(getattr(JOINT, field), rel=1e-3), field
  assert law.size_coefficient == pytest.approx(JOINT.size_coefficient, rel=0.02)


def test_an_outlier_moves_the_joint_law_less_than_least_squares_would():
  points = joint_points(noise=0.001)
  clean = fit_joint_law(points).irreducible_loss
  moved = [
    fit_joint_law(with_loss(points, run, 1.05)).irreducible_loss - clean for run in (0, 14, 35)
  ]
  # Least squares moves by 0.10, 0.17 and 0.17.
  assert np.max(np.abs(moved)) < 0.03


def test_a_start_leads_to_the_same_fit():
  points = joint_points(noise=0.003)
  cold = fit_joint_law(points)
  start = dataclasses.replace(cold, irreducible_loss=1.0, epochs_exponent=0.1, size_exponent=0.9)
  warm = fit_joint_law(points, start)
  assert warm.huber_scale == cold.huber_scale
  assert warm.irreducible_loss == pytest.approx(cold.irreducible_loss, abs=1e-3)
  assert warm.size_exponent == pytest.approx(cold.size_exponent, rel=1e-2)


@pytest.mark.parametrize("factor", [1e-3, 1e17])
def test_the_unit_of_compute_does_not_matter(factor):
  loss = 1 + 3 * COMPUTE**-0.2
  assert fit_compute_law(factor * COMPUTE, loss).exponent == pytest.approx(
    fit_compute_law(COMPUTE, loss).exponent
  )
  law = fit_irreducible_law(factor * COMPUTE, loss)
  assert law.irreducible_loss == pytest.approx(1, abs=0.02)


def test_cost_law_is_recovered():
  cost = fit_cost_law(joint_points(cost=CostLaw(coefficient=3e-7, exponent=1.2)))
  assert cost.coefficient == pytest.approx(3e-7)
  assert cost.exponent == pytest.approx(1.2)
  assert cost.epochs(1e8, 3e-7 * 1e8**1.2 * 4) == pytest.approx(4)


@pytest.mark.parametrize("size_exponent", [0.3, 0.5])
@pytest.mark.parametrize("cost_exponent", [0.8, 1.3])
@pytest.mark.parametrize("compute", [1e3, 1e5])
def test_optimum_of_the_joint_law_is_that_of_a_grid(size_exponent, cost_exponent, compute):
  # The term is 0.6 nats at 1e8 parameters, with either exponent.
  joint = dataclasses.replace(
    JOINT, size_exponent=size_exponent, size_coefficient=0.6 * 1e8**size_exponent
  )
  cost = CostLaw(coefficient=1e3 / 1e8**cost_exponent, exponent=cost_exponent)
  optimum = joint_optimum(joint, cost)
  sizes = np.geomspace(1e5, 1e12, 200_001)
  grid = joint.loss(sizes, cost.epochs(sizes, compute))
  best = sizes[np.argmin(grid)]
  assert sizes[0] < best < sizes[-1]
  # Neighbors on the grid are 8e-5 apart.
  assert optimum.parameters(compute) == pytest.approx(best, rel=2e-4)
  assert optimum.epochs(compute) == pytest.approx(cost.epochs(best, compute), rel=4e-4)
  assert optimum.epochs(optimum.one_epoch_compute) == pytest.approx(1)


def test_there_is_no_optimum_of_what_gains_nothing():
  assert joint_optimum(dataclasses.replace(JOINT, size_exponent=0.0), COST) is None
  assert joint_optimum(dataclasses.replace(JOINT, epochs_exponent=0.0), COST) is None
  assert joint_optimum(JOINT, CostLaw(coefficient=1.0, exponent=-0.1)) is None


@pytest.mark.parametrize(("way", "tolerance"), [("parabola", 0.05), ("best network", 0.12)])
def test_interpolated_optima_are_those_of_the_law(way, tolerance):
  # Many sizes, since of a few the best one moves in steps.
  points = joint_points(sizes=np.geomspace(1e7, 1e10, 40), epochs=np.geomspace(0.1, 30, 20))
  optima = interpolated_optima(points, way, budgets_between(points.compute))
  found = fit_optimum_law(optima)
  true = joint_optimum(JOINT, COST)
  assert found.size_exponent == pytest.approx(true.size_exponent, abs=tolerance)
  assert found.epochs_exponent == pytest.approx(true.epochs_exponent, abs=tolerance)
  middle = np.median(optima.compute)
  assert found.parameters(middle) == pytest.approx(true.parameters(middle), rel=0.3)


@pytest.mark.parametrize("way", ["best network", "parabola"])
def test_a_budget_whose_best_network_is_the_largest_says_nothing(way):
  # Epochs bring next to nothing, so the largest is always the best.
  law = dataclasses.replace(JOINT, epochs_coefficient=1e-3)
  points = joint_points(law=law)
  optima = interpolated_optima(points, way, budgets_between(points.compute))
  assert len(optima.compute) == 0
  assert fit_optimum_law(optima) is None


def test_networks_are_not_compared_beyond_their_runs():
  points = joint_points()
  optima = interpolated_optima(points, "best network", budgets_between(points.compute))
  for compute, parameters, epochs in zip(
    optima.compute, optima.parameters, optima.epochs, strict=True
  ):
    own = points.compute[np.isclose(points.parameters, parameters)]
    assert own.min() <= compute <= own.max()
    assert EPOCHS[0] <= epochs <= EPOCHS[-1]


def test_too_few_runs_give_no_law():
  assert fit_compute_law(np.array([1.0, 2, 2]), np.array([3.0, 2, 2.1])) is None
  assert fit_irreducible_law(COMPUTE[:4], COMPUTE[:4] ** -0.1) is None
  points = joint_points()
  assert fit_joint_law(points.take(points.epochs <= 0.5)) is None
  assert fit_joint_law(points.take(points.parameters < 2e8)) is None
  assert fit_joint_law(points.take(np.arange(0, 36, 6))) is None
  assert fit_cost_law(points.take(points.parameters < 1.1e8)) is None
