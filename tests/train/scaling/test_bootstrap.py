import numpy as np
import pytest

from tests.train.scaling.known_laws import JOINT, joint_points
from train.scaling.bootstrap import bootstrap_laws
from train.scaling.laws.law_set import FORMS
from train.scaling.points import Points

FORM = {form.field: form for form in FORMS}


def power_law_points(seed, *, noise=0.01):
  """20 runs at four amounts of compute, which are too few for all but a power law."""
  compute = np.repeat([1e3, 1e4, 1e5, 1e6], 5)
  factors = np.exp(noise * np.random.default_rng(seed).normal(size=20))
  return Points(
    names=np.full(20, "one"),
    parameters=np.full(20, 1e8),
    epochs=compute / 1e3,
    compute=compute,
    loss=4 * compute**-0.05 * factors,
  )


def test_intervals_cover_what_they_should():
  bootstraps = [
    bootstrap_laws(power_law_points(seed), resamples=100, seed=seed) for seed in range(40)
  ]
  intervals = np.array([one.interval(lambda laws: laws.all_runs.exponent) for one in bootstraps])
  covered = (intervals[:, 0] <= 0.05) & (intervals[:, 1] >= 0.05)
  # Of 20 runs percentiles cover 92 % (simulated): 32 or fewer of 40 would be 1 in 100.
  assert covered.sum() >= 33
  # The standard error is noise / |log(compute) - mean|.
  compute = np.log(power_law_points(0).compute)
  width = 2 * 1.96 * 0.01 / np.sqrt(np.sum((compute - compute.mean()) ** 2))
  assert np.mean(intervals[:, 1] - intervals[:, 0]) == pytest.approx(width, rel=0.15)

  new = 4 * 4e6**-0.05 * np.exp(0.01 * np.random.default_rng(99).normal(size=len(bootstraps)))
  predicted = [one.prediction(FORM["all_runs"], 4e6)[1] for one in bootstraps]
  inside = [low <= loss <= high for loss, (low, high) in zip(new, predicted, strict=True)]
  assert sum(inside) >= 33
  # Mostly the noise of the new run, so not much wider than that alone and not narrower.
  widths = [high / low - 1 for low, high in predicted]
  assert 0.035 < np.mean(widths) < 0.06


def test_intervals_hold_the_laws_that_made_the_runs():
  done = bootstrap_laws(joint_points(noise=0.003), resamples=60, seed=0)
  for field in ("irreducible_loss", "size_exponent", "epochs_exponent"):
    low, high = done.interval(lambda laws, f=field: getattr(laws.joint, f, None))
    assert low < getattr(JOINT, field) < high
    assert high - low < 0.8 * getattr(JOINT, field)
  # N ~ C^(b / (a + b)) and D ~ C^(a / (a + b)), as an epoch costs as much as there are parameters.
  low, high = done.interval(lambda laws: laws.joint_optimum and laws.joint_optimum.size_exponent)
  assert low < 0.3 / 0.8 < high
  low, high = done.interval(lambda laws: laws.joint_optimum and laws.joint_optimum.epochs_exponent)
  assert low < 0.5 / 0.8 < high
  estimate, (low, high) = done.prediction(FORM["joint"], 4e5)
  optimum = done.laws.joint_optimum
  assert estimate == done.laws.joint.loss(optimum.parameters(4e5), optimum.epochs(4e5))
  assert low < estimate < high


def test_the_seed_decides():
  points = power_law_points(0)
  first, again, other = (bootstrap_laws(points, resamples=30, seed=seed) for seed in (0, 0, 1))
  form = FORM["all_runs"]
  intervals = [one.interval(lambda laws: laws.all_runs.exponent) for one in (first, again, other)]
  assert intervals[0] == intervals[1] != intervals[2]
  assert first.prediction(form, 1e7) == again.prediction(form, 1e7)
  assert first.prediction(form, 1e7) != other.prediction(form, 1e7)


def test_too_few_resamples_give_no_interval():
  done = bootstrap_laws(power_law_points(0), resamples=19, seed=0)
  assert done.interval(lambda laws: laws.all_runs.exponent) is None
  assert done.prediction(FORM["all_runs"], 1e7)[1] is None
