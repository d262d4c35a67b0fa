"""The policy for steps that go wrong: NaN losses and gradients, explosions.

The training step itself skips a step whose loss is not finite or too large. Everything else is
decided here, by pure functions: which steps were bad (`StepOutcome`), whether the run goes on,
rolls back or stops (`decide`), and which batches are left out after that (`is_left_out`).
`train.run.loop` carries the decisions out. `train.config.experiment.Faults` has the settings.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from train.config.accepted_changes import FLAG
from train.config.experiment import Experiment, Faults
from train.config.overrides import as_argument

DIVERGED = "diverged"
"""Value of "fault" in the event record that a run writes to metrics.jsonl before it stops because
losses, gradients or parameters stay bad. Another learning rate may do better."""

_RATE = "optimizer.peak_learning_rate"


@dataclasses.dataclass(frozen=True)
class StepOutcome:
  """The outcome of a step.

  Attributes:
    step: number of the step, counted from 1.
    loss: loss of its batch.
    is_skipped: whether it changed nothing but the count of steps.
    gradient_norm: global norm before clipping; not finite for a skipped step. If it is not finite
      though the step was not skipped, the state after the step is not finite either.
  """

  step: int
  loss: float
  is_skipped: bool
  gradient_norm: float

  @property
  def is_bad(self) -> bool:
    """Tells whether the step went wrong, so that the run has to decide what to do."""
    return self.is_skipped or not math.isfinite(self.gradient_norm)


@dataclasses.dataclass(frozen=True)
class Stop:
  """The decision that the run must end.

  Attributes:
    reason: description of what happened, for the error message.
  """

  reason: str


@dataclasses.dataclass(frozen=True)
class RollBack:
  """The decision that the run must go back to an earlier checkpoint and continue from there.

  Attributes:
    to_step: step of that checkpoint; 0 stands for the beginning of the run.
    left_out: first and last step, both included, whose batches are not trained on this time.
    reason: description of what happened.
  """

  to_step: int
  left_out: tuple[int, int]
  reason: str

  def describe(self) -> str:
    """Returns the text of the event that is recorded when the run goes on."""
    first, last = self.left_out
    return (
      f"{self.reason}: rolled back to step {self.to_step}, leaving out the batches of steps "
      f"{first} to {last}"
    )


def extend_row(row: Sequence[StepOutcome], outcome: StepOutcome) -> tuple[StepOutcome, ...]:
  """Returns the skipped steps in a row, up to and including the latest step.

  Args:
    row: skipped steps in a row before it.
    outcome: the latest step.
  """
  return (*row, outcome) if outcome.is_skipped else ()


def decide(
  outcome: StepOutcome,
  row: Sequence[StepOutcome],
  faults: Faults,
  *,
  checkpoint_steps: Collection[int],
  roll_backs: int,
) -> RollBack | Stop | None:
  """Decides what the run does after a bad step.

  Args:
    outcome: the bad step.
    row: skipped steps in a row, this one included, see `extend_row`.
    faults: settings of the experiment.
    checkpoint_steps: steps of the checkpoints that exist.
    roll_backs: number of times that this start of the run has rolled back already.

  Returns:
    None if the run simply goes on.
  """
  if not outcome.is_skipped:
    # Rolling back and leaving out this one batch gives the result that skipping the step would have
    # given.
    first, last, steps_before = outcome.step, outcome.step, 0
    reason = f"the gradient of step {outcome.step} is not finite"
  elif len(row) == faults.skipped_in_a_row_max:
    first, last, steps_before = row[0].step, row[-1].step, faults.roll_back_steps
    reason = (
      f"{len(row)} steps in a row were skipped, from step {first} (loss {row[0].loss:.4g}) to "
      f"{last} (loss {row[-1].loss:.4g})"
    )
    if faults.then == "stop":
      return Stop(f"{reason}, and faults.then='stop'")
  else:
    return None
  if roll_backs == faults.roll_backs_max:
    return Stop(f"{reason}, after faults.roll_backs_max={roll_backs} earlier roll-backs")
  to_step = _roll_back_target(checkpoint_steps, first, steps_before)
  return RollBack(to_step, (max(to_step + 1, first - steps_before), last), reason)


def _roll_back_target(checkpoint_steps: Collection[int], first: int, steps_before: int) -> int:
  """Returns the step of the newest checkpoint before all left-out steps, else of the oldest usable.

  Args:
    checkpoint_steps: steps of the checkpoints that exist.
    first: first bad step; only checkpoints of earlier steps are usable.
    steps_before: number of steps before `first` that should be left out too.
  """
  earlier = [step for step in checkpoint_steps if step < first]
  early_enough = [step for step in earlier if step < first - steps_before]
  return max(early_enough) if early_enough else min(earlier, default=0)


def is_left_out(step: int, left_out: Collection[tuple[int, int]]) -> bool:
  """Returns whether a step's batch is not trained on.

  Args:
    step: number of the step.
    left_out: ranges of steps, first and last included, from all roll-backs of the run.
  """
  return any(first <= step <= last for first, last in left_out)


def stop_message(
  reason: str,
  experiment: Experiment,
  newest_checkpoint_step: int | None,
  *,
  takes_changes: bool,
) -> str:
  """Returns the error message of a run that has diverged, with what can be done about it.

  Args:
    reason: description of what happened.
    experiment: experiment that was trained.
    newest_checkpoint_step: step of the newest checkpoint, or None.
    takes_changes: whether the program can resume the run with `--accept_changes`.
  """
  rate = experiment.optimizer.peak_learning_rate
  lower = as_argument(_RATE, f"{rate / 2:g}")
  if newest_checkpoint_step is None:
    return f"{reason}, before the first checkpoint; run the same command again with {lower}"
  advice = f"{reason}; the newest checkpoint is of step {newest_checkpoint_step}; "
  if takes_changes:
    return f"{advice}to go on from it, run the same command again with {lower} --{FLAG}={_RATE}"
  return f"{advice}move the workdir away and start anew with a lower {_RATE} than {rate:g}"


def is_finite(tree: Any) -> jax.Array:
  """Returns whether all values of all arrays are finite, as a boolean scalar; to be jitted.

  Args:
    tree: arrays of any shapes and dtypes.
  """
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
