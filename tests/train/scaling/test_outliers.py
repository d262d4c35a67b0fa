import numpy as np
import pytest

from tests.train.scaling.known_laws import joint_points, with_loss
from train.scaling.laws.joint_law import fit_joint_law
from train.scaling.outliers import judge, modified_z_scores


def test_modified_z_scores_by_hand():
  # Median 3, deviations 2, 1, 0, 1, 7, their median 1.
  scores = modified_z_scores(np.array([1.0, 2, 3, 4, 10]))
  assert scores == pytest.approx(0.6745 * np.array([-2, -1, 0, 1, 7]))


@pytest.mark.parametrize("run", [0, 14, 17, 35])
@pytest.mark.parametrize("factor", [0.96, 1.04])
def test_a_planted_outlier_is_the_one_flagged(run, factor):
  points = with_loss(joint_points(noise=0.003, seed=3), run, factor)
  judgment = judge(points, None)
  assert judgment.by == "own curve"
  assert judgment.flagged[run]
  assert np.argmax(np.abs(judgment.scores)) == run
  # Off what the others say by all that was planted, but for their noise; a residual of a fit that
  # has the run in it would be as little as 0.4 of it at the end of a curve.
  assert judgment.deviations[run] == pytest.approx(np.log(factor), abs=0.02)


def test_clean_runs_are_rarely_flagged():
  flags = [judge(joint_points(noise=0.003, seed=seed), None).flagged.sum() for seed in range(100)]
  # Simulated, 6 or 7 of 100 tables have a flag; more than 16 would be 6 in 10,000.
  assert np.count_nonzero(flags) <= 16


def test_deviations_are_those_of_fits_without_the_run():
  points = joint_points(noise=0.003)
  names = np.unique(points.names)
  own = (points.names[:, None] == names).astype(float)
  epochs = np.log(points.epochs)[:, None]
  design, loss = np.hstack([own, own * epochs, epochs**2]), np.log(points.loss)
  expected = []
  for run in range(len(points)):
    others = np.arange(len(points)) != run
    fit = np.linalg.lstsq(design[others], loss[others])[0]
    expected.append(loss[run] - design[run] @ fit)
  assert judge(points, None).deviations == pytest.approx(np.array(expected))


@pytest.mark.parametrize("run", [0, 10])
def test_networks_of_one_run_each_are_judged_by_the_joint_law(run):
  # Each size for one number of epochs, so that no network has a curve.
  generator = np.random.default_rng(0)
  points = joint_points(noise=0.003, sizes=np.geomspace(1e8, 1e9, 24))
  points = points.take(6 * np.arange(24) + generator.permutation(np.arange(24) % 6))
  points = with_loss(points, run, 1.06)
  judgment = judge(points, fit_joint_law(points))
  assert judgment.by == "joint law"
  assert np.flatnonzero(judgment.flagged).tolist() == [run]
  others = fit_joint_law(points.take(np.arange(24) != run))
  predicted = others.loss(points.parameters[run], points.epochs[run])
  assert judgment.deviations[run] == pytest.approx(np.log(points.loss[run] / predicted), abs=1e-3)


def test_exact_runs_have_no_outlier_but_the_planted_one():
  points = joint_points()
  assert not judge(points, None).flagged.any()
  assert judge(with_loss(points, 8, 1.01), None).flagged[8]


def test_networks_with_too_few_runs_are_not_judged():
  points = joint_points(noise=0.003)
  kept = (points.parameters > 1.1e8) | (points.epochs <= 0.5)
  judgment = judge(points.take(kept), None)
  assert np.isnan(judgment.scores[:2]).all()
  assert np.isfinite(judgment.scores[2:]).all()
  assert not judgment.flagged[:2].any()


def test_too_few_runs_are_not_judged():
  assert judge(joint_points(sizes=np.array([1e8])), None) is None
