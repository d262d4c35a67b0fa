"""Starts a run at step 0 or resumes it at its newest checkpoint, and saves checkpoints.

A `Position` is everything that changes while a run goes on. `start` and `resume` make one, `save`
writes one into a checkpoint.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from nfnet.errors import UserError, short_text
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet
from train.config.experiment import Experiment
from train.run.checkpoints.manager import Checkpoints
from train.run.checkpoints.resumable import changed_fields
from train.run.tally import Counts
from train.step.optimizer import Optimizer, SGDAGCState
from train.step.sharding.parameters import put_parameters
from train.step.state import TrainState, initial_state


@dataclasses.dataclass(kw_only=True)
class Position:
  """The position of a run.

  Attributes:
    state: training state after `step`.
    step: number of steps done.
    data_state: state of the data iterator after the batch of that step.
    counts: counts up to that step.
    left_out: first and last step of the batches that are left out after each roll-back.
    owes_evaluation: whether the run was terminated before or during the evaluation of this step.
    roll_backs: number of roll-backs since the program was started; not saved.
    changes: changes of the experiment that were accepted on resuming: step, field, and its values
      until then and from then on, under "from" and "to".
  """

  state: TrainState
  step: int
  data_state: dict[str, Any]
  counts: Counts = dataclasses.field(default_factory=Counts)
  left_out: set[tuple[int, int]] = dataclasses.field(default_factory=set)
  owes_evaluation: bool = False
  roll_backs: int = 0
  changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def start(
  experiment: Experiment,
  model: NFNet,
  optimizer: Optimizer,
  initial: Callable[[], Any] | None,
  like: TrainState,
  mesh: jax.sharding.Mesh,
  data_state: Mapping[str, Any],
) -> Position:
  """Returns the position before the first step.

  Args:
    experiment: experiment to train.
    model: structure of the network.
    optimizer: optimizer of the experiment.
    initial: returns the initial parameters on the host, like `nfnet.model.parameter_shapes(model)`;
      None draws them from the seed.
    like: abstract state from `train.step.state.abstract_state`.
    mesh: mesh of devices.
    data_state: state of the data iterator before the first batch.
  """
  parameters = initial_parameters(model, experiment.seed) if initial is None else initial()
  state = initial_state(experiment, optimizer, put_parameters(model, parameters, mesh))
  shardings = jax.tree.map(lambda x: x.sharding, like)
  # The count of steps is on one device, unlike the one that a step returns; left there, it would
  # make the second step compile again.
  return Position(state=jax.device_put(state, shardings), step=0, data_state=dict(data_state))


def resume(
  checkpoints: Checkpoints,
  experiment: Experiment,
  like: TrainState,
  accepted_changes: Collection[str] = (),
  *,
  class_names: Sequence[str] | None = None,
) -> tuple[Position, list[str]]:
  """Returns the position of the newest checkpoint that is not damaged.

  Args:
    checkpoints: checkpoints of the run; there is at least one.
    experiment: experiment to train, which must be the one trained so far.
    like: abstract state from `train.step.state.abstract_state`.
    accepted_changes: fields of `ACCEPTABLE_ON_RESUME` in which the experiment may differ.
    class_names: names of the data set's classes, which must be those of the checkpoint; None
      accepts any.

  Returns:
    The position, and texts for the record: checkpoints that were set aside, and accepted changes.

  Raises:
    UserError: no checkpoint can be restored, or the checkpoints are of another experiment.
  """
  restored = checkpoints.restore(
    parameters=like.parameters,
    ema=like.ema,
    optimizer=like.optimizer._asdict(),
    experiment=experiment,
    accepted_changes=accepted_changes,
    class_names=class_names,
  )
  changes = [
    {"step": restored.step, "field": field, "from": before, "to": now}
    for field, (before, now) in changed_fields(restored.metadata, experiment).items()
  ]
  texts = [f"checkpoint of step {step} was damaged and set aside" for step in restored.set_aside]
  texts += [
    f"resumed after step {restored.step} with {one['field']}={one['to']} instead of {one['from']}"
    for one in changes
  ]
  try:
    position = Position(
      state=TrainState(restored.parameters, SGDAGCState(**restored.optimizer), restored.ema),
      step=restored.step,
      data_state=dict(restored.data_state),
      counts=Counts(**restored.metadata["counts"]),
      left_out={(int(first), int(last)) for first, last in restored.metadata["left_out"]},
      owes_evaluation=bool(restored.metadata["owes_evaluation"]),
      changes=[*restored.metadata.get("changes", ()), *changes],
    )
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"the checkpoint of step {restored.step} lacks what resuming needs ({short_text(error)}); "
      "resume with the version that saved it, or move the workdir away to start anew"
    ) from error
  return position, texts


def save(
  checkpoints: Checkpoints,
  position: Position,
  metadata: Mapping[str, Any],
  metrics: Mapping[str, float] | None = None,
) -> None:
  """Starts to save a checkpoint, see `Checkpoints.save`.

  Args:
    checkpoints: checkpoints of the run.
    position: position to save.
    metadata: JSON about the experiment; counts, left-out batches and changes are added.
    metrics: results of the evaluation at this step, if there was one.
  """
  checkpoints.save(
    position.step,
    parameters=position.state.parameters,
    ema=position.state.ema,
    optimizer=position.state.optimizer._asdict(),
    data_state=position.data_state,
    metadata={
      **metadata,
      "counts": dataclasses.asdict(position.counts),
      "left_out": sorted(position.left_out),
      "owes_evaluation": position.owes_evaluation,
      "changes": position.changes,
    },
    metrics=metrics,
  )
