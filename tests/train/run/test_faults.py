"""What is decided about bad steps: values in, decisions out, no training."""

import dataclasses
import math

import numpy as np
import pytest

from train.config.experiment import Experiment, Faults, Optimizer
from train.run.faults import (
  RollBack,
  StepOutcome,
  Stop,
  decide,
  extend_row,
  is_finite,
  is_left_out,
  stop_message,
)

FAULTS = Faults(
  then="roll_back", skipped_in_a_row_max=3, roll_back_steps=2, roll_backs_max=2, loss_max=None
)


def good(step):
  return StepOutcome(step, 1.0, is_skipped=False, gradient_norm=2.0)


def skipped(step, loss=math.inf):
  return StepOutcome(step, loss, is_skipped=True, gradient_norm=math.nan)


def without_gradient(step):
  return StepOutcome(step, 1.0, is_skipped=False, gradient_norm=math.inf)


def decide_after_three(first=11, *, faults=FAULTS, checkpoint_steps=(4, 8), roll_backs=0):
  row = [skipped(first), skipped(first + 1, math.nan), skipped(first + 2)]
  return decide(row[-1], row, faults, checkpoint_steps=checkpoint_steps, roll_backs=roll_backs)


@pytest.mark.parametrize(
  ("outcome", "is_bad"), [(good(1), False), (skipped(1), True), (without_gradient(1), True)]
)
def test_a_step_is_bad_if_it_was_skipped_or_its_gradient_is_not_finite(outcome, is_bad):
  assert outcome.is_bad == is_bad


def test_a_row_of_skipped_steps_ends_with_any_other_step():
  row, rows = (), []
  for outcome in (skipped(1), good(2), skipped(3), skipped(4), without_gradient(5), skipped(6)):
    row = extend_row(row, outcome)
    rows.append([one.step for one in row])
  assert rows == [[1], [], [3], [3, 4], [], [6]]


@pytest.mark.parametrize("count", [1, 2])
def test_few_skipped_steps_decide_nothing(count):
  row = [skipped(5 + i) for i in range(count)]
  assert decide(row[-1], row, FAULTS, checkpoint_steps=[4], roll_backs=0) is None


@pytest.mark.parametrize(
  ("checkpoint_steps", "to_step"), [((), 0), ((4,), 4), ((4, 8, 12), 8), ((9, 12), 0)]
)
def test_a_gradient_that_is_not_finite_rolls_back_and_leaves_out_its_step(
  checkpoint_steps, to_step
):
  decision = decide(
    without_gradient(9), (), FAULTS, checkpoint_steps=checkpoint_steps, roll_backs=0
  )
  assert (decision.to_step, decision.left_out) == (to_step, (9, 9))
  assert decision.describe() == (
    f"the gradient of step 9 is not finite: rolled back to step {to_step}, leaving out the batches "
    "of steps 9 to 9"
  )


@pytest.mark.parametrize("then", ["stop", "roll_back"])
def test_a_gradient_that_is_not_finite_rolls_back_whatever_skipped_steps_do(then):
  faults = dataclasses.replace(FAULTS, then=then)
  decision = decide(without_gradient(9), (), faults, checkpoint_steps=[4], roll_backs=0)
  assert isinstance(decision, RollBack)


@pytest.mark.parametrize(
  ("checkpoint_steps", "to_step", "left_out"),
  [
    # The newest checkpoint that is older than the two steps before the first bad one.
    ((4, 8), 8, (9, 13)),
    ((4, 8, 12), 8, (9, 13)),
    ((4, 9), 4, (9, 13)),
    # No checkpoint is that old: the oldest there is.
    ((10,), 10, (11, 13)),
    ((9, 10), 9, (10, 13)),
    ((), 0, (9, 13)),
    ((11, 12), 0, (9, 13)),
  ],
)
def test_several_skipped_in_a_row_roll_back_to_before_they_began(
  checkpoint_steps, to_step, left_out
):
  decision = decide_after_three(checkpoint_steps=checkpoint_steps)
  assert (decision.to_step, decision.left_out) == (to_step, left_out)
  assert decision.reason == (
    "3 steps in a row were skipped, from step 11 (loss inf) to 13 (loss inf)"
  )


def test_what_is_left_out_begins_with_the_run():
  assert decide_after_three(first=1, checkpoint_steps=()).left_out == (1, 3)


def test_several_skipped_in_a_row_stop_the_run_if_so_configured():
  assert decide_after_three(faults=dataclasses.replace(FAULTS, then="stop")) == Stop(
    "3 steps in a row were skipped, from step 11 (loss inf) to 13 (loss inf), and "
    "faults.then='stop'"
  )


def test_rolling_back_has_an_end():
  assert isinstance(decide_after_three(roll_backs=1), RollBack)
  for decision in (
    decide_after_three(roll_backs=2),
    decide(without_gradient(9), (), FAULTS, checkpoint_steps=[4], roll_backs=2),
  ):
    assert isinstance(decision, Stop)
    assert decision.reason.endswith(", after faults.roll_backs_max=2 earlier roll-backs")


def test_ranges_that_are_left_out_include_both_ends():
  left_out = {(3, 3), (5, 7)}
  assert [step for step in range(1, 10) if is_left_out(step, left_out)] == [3, 5, 6, 7]
  assert not is_left_out(1, set())


def test_the_message_says_what_to_do():
  experiment = Experiment(name="any", optimizer=Optimizer(peak_learning_rate=1.6))
  assert stop_message("it happened", experiment, 100, takes_changes=True) == (
    "it happened; the newest checkpoint is of step 100; to go on from it, run the same command "
    "again with --config.optimizer.peak_learning_rate=0.8 "
    "--accept_changes=optimizer.peak_learning_rate"
  )
  assert stop_message("it happened", experiment, 100, takes_changes=False) == (
    "it happened; the newest checkpoint is of step 100; move the workdir away and start anew with "
    "a lower optimizer.peak_learning_rate than 1.6"
  )
  assert stop_message("it happened", experiment, None, takes_changes=True) == (
    "it happened, before the first checkpoint; run the same command again with "
    "--config.optimizer.peak_learning_rate=0.8"
  )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_seen(value):
  tree = {"a": np.ones((3, 4), np.float32), "step": np.int32(3), "b": np.zeros(5, np.float32)}
  assert is_finite(tree)
  tree["a"][2, 1] = value
  assert not is_finite(tree)
