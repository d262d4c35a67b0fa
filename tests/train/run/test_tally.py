import math

import numpy as np
import pytest

from train.run.tally import Counts, Tally


def metrics(loss, *, skipped=0.0, examples=8.0, gradient_norm=1.0):
  return {
    name: np.float32(value)
    for name, value in {
      "loss": loss,
      "top1": 0.5,
      "gradient_norm": gradient_norm,
      "learning_rate": 0.1 * loss,
      "examples": examples,
      "skipped": skipped,
    }.items()
  }


def settle(tally, running_max=0):
  """Returns the bad ones of the steps that are settled."""
  return [one for one in tally.settle(running_max=running_max) if one.is_bad]


def test_means_are_of_the_steps_that_changed_something():
  tally = Tally(8, Counts())
  for step, one in enumerate(
    [metrics(1.0), metrics(math.nan, skipped=1.0, gradient_norm=math.nan), metrics(3.0)], start=1
  ):
    tally.add(step, one)
  (bad,) = settle(tally)
  assert (bad.step, bad.is_skipped) == (2, True)
  assert math.isnan(bad.loss)
  record = tally.close_window()
  assert (record["loss"], record["gradient_norm"]) == (2.0, 1.0)
  assert record["learning_rate"] == pytest.approx(0.3)
  assert record["skipped_steps"] == 1
  assert tally.skipped_in_a_row == ()
  # A window of its own.
  tally.add(4, metrics(5.0))
  settle(tally)
  assert tally.close_window()["loss"] == 5.0


def test_steps_that_may_still_run_are_not_looked_at():
  tally = Tally(8, Counts())
  for step in range(1, 6):
    tally.add(step, metrics(1.0))
  settle(tally, running_max=2)
  assert tally.counts.images == 3 * 8
  settle(tally)
  assert tally.counts.images == 5 * 8


def test_counts_go_on_from_those_of_the_checkpoint():
  tally = Tally(8, Counts(images=80, bad_images=2, skipped_steps=1))
  tally.add(11, metrics(1.0, examples=5.0))
  settle(tally)
  assert tally.counts == Counts(images=88, bad_images=5, skipped_steps=1)
  assert tally.close_window()["bad_images"] == 5


def test_skipped_steps_in_a_row_are_known_when_each_is_yielded():
  tally = Tally(8, Counts())
  for step, skipped in enumerate((1.0, 0.0, 1.0, 1.0, 0.0), start=1):
    tally.add(step, metrics(9.0, skipped=skipped))
  rows = [[one.step for one in tally.skipped_in_a_row] for _ in tally.settle(running_max=0)]
  assert rows == [[1], [], [3], [3, 4], []]
  assert tally.skipped_in_a_row == ()


def test_a_gradient_that_is_not_finite_is_bad_though_its_step_was_not_skipped():
  tally = Tally(8, Counts())
  tally.add(1, metrics(1.0, gradient_norm=math.inf))
  (bad,) = settle(tally)
  assert (bad.step, bad.is_skipped) == (1, False)
  assert tally.counts.skipped_steps == 0
