import dataclasses

import numpy as np
import pytest

from tests.train.scaling.known_laws import PAPER_A_FINE_TUNED, fine_tuned_runs
from train.scaling.laws.finetuning_law import (
  KINDS,
  cross_validate,
  fit_finetuning_law,
  validate_loss_order,
)

KIND = {kind.label: kind for kind in KINDS}


def test_a_law_is_found_again():
  law = fit_finetuning_law(KIND["loss and size"], fine_tuned_runs())
  assert law.exponents == pytest.approx((1.5, -0.1), rel=1e-6)
  assert np.exp(law.constant) == pytest.approx(4, rel=1e-6)
  new = dataclasses.replace(
    fine_tuned_runs()[0], parameters=3e7, loss_nats=1.1, top1_error_percent=None
  )
  assert law.error_percent(new) == pytest.approx(4 * 1.1**1.5 * 3e7**-0.1, rel=1e-6)


def test_standard_errors_and_intervals_cover_what_they_should():
  new = dataclasses.replace(fine_tuned_runs()[-1], parameters=2e7, loss_nats=1.2)
  true = 4 * 1.2**1.5 * 2e7**-0.1
  covered, off = [], []
  for seed in range(200):
    law = fit_finetuning_law(KIND["loss and size"], fine_tuned_runs(noise=0.05, seed=seed))
    low, high = law.interval_percent(new)
    noise = np.exp(0.05 * np.random.default_rng(1000 + seed).normal())
    covered.append(low <= true * noise <= high)
    off.append((law.exponents[1] + 0.1) / law.exponent_errors[1])
  # 95 % of 200; 99 % of such counts are within 182 and 197.
  assert 182 <= sum(covered) <= 197
  assert np.std(off) == pytest.approx(1, abs=0.2)


def test_networks_are_predicted_by_the_others():
  runs = fine_tuned_runs(noise=0.02)
  found = cross_validate(KIND["loss and size"], runs)
  for index, run in enumerate(runs):
    law = fit_finetuning_law(
      KIND["loss and size"], [other for other in runs if other.name != run.name]
    )
    assert found.predictions[index] == law.error_percent(run)
  true = np.array([run.top1_error_percent for run in runs])
  assert found.mean_error == pytest.approx(np.mean(np.abs(found.predictions / true - 1)))
  wrong = sum(
    (true[i] - true[j]) * (found.predictions[i] - found.predictions[j]) < 0
    for i in range(len(runs))
    for j in range(i)
  )
  assert (found.wrong_pairs, found.pairs) == (wrong, 120)
  assert found.first_percent == true[np.argmin(found.predictions)]
  assert found.best_percent == true.min()


def test_size_tells_what_the_loss_does_not():
  """Where larger networks fine-tune better at equal loss, the law with size orders better."""
  runs = fine_tuned_runs(noise=0.01, size_exponent=-0.3)
  by_loss = validate_loss_order(runs)
  assert by_loss.mean_error is None
  assert cross_validate(KIND["loss and size"], runs).wrong_pairs < by_loss.wrong_pairs


def test_what_cannot_be_told_is_no_law():
  runs = fine_tuned_runs()
  # Three runs of three networks would be met exactly, whatever they are.
  assert fit_finetuning_law(KIND["loss and size"], runs[::5][:3]) is None
  assert fit_finetuning_law(KIND["loss and size"], runs[::5]) is not None
  # One size has no exponent; nor have two networks, of which one is left out.
  assert fit_finetuning_law(KIND["loss and size"], runs[:4]) is None
  assert cross_validate(KIND["loss and size"], runs[:8]) is None
  assert cross_validate(KIND["loss alone"], runs[:8]) is not None


def test_paper_a_larger_networks_fine_tune_better_at_equal_loss():
  """Its words, section 3: slightly larger models, slightly fewer epochs."""
  law = fit_finetuning_law(KIND["loss and size"], PAPER_A_FINE_TUNED)
  assert law.exponents[0] == pytest.approx(1.40, abs=0.01)
  assert law.exponents[1] == pytest.approx(-0.034, abs=0.001)
  assert law.exponents[1] < -4 * law.exponent_errors[1]
  with_size, loss_alone = (
    cross_validate(KIND[label], PAPER_A_FINE_TUNED) for label in ("loss and size", "loss alone")
  )
  assert with_size.mean_error < 0.7 * loss_alone.mean_error
  assert with_size.wrong_pairs < validate_loss_order(PAPER_A_FINE_TUNED).wrong_pairs
