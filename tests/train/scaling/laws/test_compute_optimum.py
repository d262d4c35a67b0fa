import dataclasses

import numpy as np
import pytest

from tests.train.scaling.known_laws import COST, EPOCHS, JOINT, joint_points
from train.scaling.laws.compute_optimum import (
  budgets_between,
  fit_optimum_law,
  interpolated_optima,
  joint_optimum,
)
from train.scaling.laws.joint_law import CostLaw


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
  epochs = compute / (cost.coefficient * sizes**cost.exponent)
  best = np.argmin(joint.loss(sizes, epochs))
  assert 0 < best < len(sizes) - 1
  # Neighbors on the grid are 8e-5 apart.
  assert optimum.parameters(compute) == pytest.approx(sizes[best], rel=2e-4)
  assert optimum.epochs(compute) == pytest.approx(epochs[best], rel=4e-4)
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
