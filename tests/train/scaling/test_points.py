import numpy as np

from train.scaling.points import frontier


def test_frontier_by_hand():
  compute = np.array([1.0, 2, 2.5, 3, 3, 4, 4, 5, 6])
  loss = np.array([9.0, 8, 8, 7, 7.5, 6, 6, 7, 5])
  # These cost more than another run and are no better; cost the same and are worse; cost more and
  # are worse.
  off = [2, 4, 7]
  assert np.flatnonzero(~frontier(compute, loss)).tolist() == off


def test_the_frontier_of_many_runs_is_what_comparing_all_of_them_finds():
  random = np.random.default_rng(0)
  # Of few different values, so that many are equal.
  compute, loss = random.integers(1, 30, (2, 300)).astype(float)
  cheaper = compute[None] <= compute[:, None]
  better = loss[None] <= loss[:, None]
  strictly = (compute[None] < compute[:, None]) | (loss[None] < loss[:, None])
  dominated = np.any(cheaper & better & strictly, axis=1)
  np.testing.assert_array_equal(frontier(compute, loss), ~dominated)
