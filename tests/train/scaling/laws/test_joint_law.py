import dataclasses

import numpy as np
import pytest

from tests.train.scaling.known_laws import JOINT, joint_points, with_loss
from train.scaling.laws.joint_law import CostLaw, fit_cost_law, fit_joint_law


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


def test_cost_law_is_recovered():
  cost = fit_cost_law(joint_points(cost=CostLaw(coefficient=3e-7, exponent=1.2)))
  assert cost.coefficient == pytest.approx(3e-7)
  assert cost.exponent == pytest.approx(1.2)


def test_too_few_runs_give_no_law():
  points = joint_points()
  assert fit_joint_law(points.take(points.epochs <= 0.5)) is None
  assert fit_joint_law(points.take(points.parameters < 2e8)) is None
  assert fit_joint_law(points.take(np.arange(0, 36, 6))) is None
  assert fit_cost_law(points.take(points.parameters < 1.1e8)) is None
