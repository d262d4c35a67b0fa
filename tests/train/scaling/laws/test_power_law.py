import numpy as np
import pytest

from train.scaling.laws.power_law import fit_compute_law, fit_irreducible_law

COMPUTE = np.geomspace(1e3, 1e5, 12)


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
  # Such a flat curve leaves the rest to the last digits.
  assert law.irreducible_loss == pytest.approx(irreducible, abs=0.02)
  assert law.exponent == pytest.approx(exponent, rel=0.03)


@pytest.mark.parametrize("factor", [1e-3, 1e17])
def test_the_unit_of_compute_does_not_matter(factor):
  loss = 1 + 3 * COMPUTE**-0.2
  assert fit_compute_law(factor * COMPUTE, loss).exponent == pytest.approx(
    fit_compute_law(COMPUTE, loss).exponent
  )
  law = fit_irreducible_law(factor * COMPUTE, loss)
  assert law.irreducible_loss == pytest.approx(1, abs=0.02)


def test_too_few_runs_give_no_law():
  assert fit_compute_law(np.array([1.0, 2, 2]), np.array([3.0, 2, 2.1])) is None
  assert fit_irreducible_law(COMPUTE[:4], COMPUTE[:4] ** -0.1) is None
