import dataclasses

import numpy as np
import pytest

from train.published_runs import PAPER_A_NFNETS
from train.scaling.finetuning_law import KINDS, check, check_lowest_loss, fit
from train.scaling.run_table import Run, read_runs

KIND = {kind.label: kind for kind in KINDS}
PAPER_A = [run for run in read_runs([PAPER_A_NFNETS]).runs if run.top1_error_percent is not None]


def grid(*, noise=0.0, seed=0, networks=4, loss_exponent=1.5, size_exponent=-0.1):
  """Networks of growing size with four budgets each; errors follow a law of loss and size."""
  random = np.random.default_rng(seed)
  runs = []
  for network in range(networks):
    for epochs in (1, 2, 4, 8):
      parameters = 1e6 * 2.0**network
      loss = 3 * parameters**-0.03 * epochs**-0.1 * np.exp(0.05 * random.normal())
      error = 4 * loss**loss_exponent * parameters**size_exponent
      runs.append(
        Run(
          name=f"network {network}",
          parameters=parameters,
          epochs=epochs,
          compute=parameters * epochs,
          loss_nats=loss,
          learning_rate=None,
          top1_error_percent=error * np.exp(noise * random.normal()),
          probe_squared_error=None,
          place="",
        )
      )
  return runs


def test_a_law_is_found_again():
  law = fit(KIND["loss and size"], grid())
  assert law.exponents == pytest.approx((1.5, -0.1), rel=1e-6)
  assert np.exp(law.constant) == pytest.approx(4, rel=1e-6)
  new = dataclasses.replace(grid()[0], parameters=3e7, loss_nats=1.1, top1_error_percent=None)
  assert law.error_percent(new) == pytest.approx(4 * 1.1**1.5 * 3e7**-0.1, rel=1e-6)


def test_standard_errors_and_intervals_cover_what_they_should():
  new = dataclasses.replace(grid()[-1], parameters=2e7, loss_nats=1.2)
  true = 4 * 1.2**1.5 * 2e7**-0.1
  covered, off = [], []
  for seed in range(200):
    law = fit(KIND["loss and size"], grid(noise=0.05, seed=seed))
    low, high = law.interval_percent(new)
    noise = np.exp(0.05 * np.random.default_rng(1000 + seed).normal())
    covered.append(low <= true * noise <= high)
    off.append((law.exponents[1] + 0.1) / law.exponent_errors[1])
  # 95 % of 200; 99 % of such counts are within 182 and 197.
  assert 182 <= sum(covered) <= 197
  assert np.std(off) == pytest.approx(1, abs=0.2)


def test_networks_are_predicted_by_the_others():
  runs = grid(noise=0.02)
  found = check(KIND["loss and size"], runs)
  for index, run in enumerate(runs):
    law = fit(KIND["loss and size"], [other for other in runs if other.name != run.name])
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
  runs = grid(noise=0.01, size_exponent=-0.3)
  by_loss = check_lowest_loss(runs)
  assert by_loss.mean_error is None
  assert check(KIND["loss and size"], runs).wrong_pairs < by_loss.wrong_pairs


def test_what_cannot_be_told_is_no_law():
  runs = grid()
  # Three runs of three networks would be met exactly, whatever they are.
  assert fit(KIND["loss and size"], runs[::5][:3]) is None
  assert fit(KIND["loss and size"], runs[::5]) is not None
  # One size has no exponent; nor have two networks, of which one is left out.
  assert fit(KIND["loss and size"], runs[:4]) is None
  assert check(KIND["loss and size"], runs[:8]) is None
  assert check(KIND["loss alone"], runs[:8]) is not None


def test_paper_a_larger_networks_fine_tune_better_at_equal_loss():
  """Its words, section 3: slightly larger models, slightly fewer epochs."""
  law = fit(KIND["loss and size"], PAPER_A)
  assert law.exponents[0] == pytest.approx(1.40, abs=0.01)
  assert law.exponents[1] == pytest.approx(-0.034, abs=0.001)
  assert law.exponents[1] < -4 * law.exponent_errors[1]
  with_size, loss_alone = (check(KIND[label], PAPER_A) for label in ("loss and size", "loss alone"))
  assert with_size.mean_error < 0.7 * loss_alone.mean_error
  assert with_size.wrong_pairs < check_lowest_loss(PAPER_A).wrong_pairs
