"""The training state: parameters, optimizer and moving average after a number of steps."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nfnet.model import NFNet
from train.config.experiment import Experiment
from train.step.model import arranged_parameter_shapes
from train.step.moving_average import initial_ema
from train.step.optimizer import Optimizer, SGDAGCState
from train.step.sharding.parameters import parameter_specs, shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Parameters, optimizer and moving average after a number of steps.

  Attributes:
    parameters: nested dictionaries, float32.
    optimizer: number of steps done, and the momentum buffers.
    ema: moving average like `parameters`, or None.
  """

  parameters: Any
  optimizer: SGDAGCState
  ema: Any | None


def initial_state(experiment: Experiment, optimizer: Optimizer, parameters: Any) -> TrainState:
  """Returns the state before the first step.

  Args:
    experiment: experiment, which says whether a moving average is kept.
    optimizer: optimizer from `train.step.optimizer.make_optimizer`.
    parameters: parameters on the devices, from `train.step.sharding.parameters.put_parameters`.
  """
  ema = None if experiment.optimizer.ema_decay is None else initial_ema(parameters)
  return TrainState(parameters, optimizer.init(parameters), ema)


def skip_step(state: TrainState) -> TrainState:
  """Returns the state after a step that changes nothing but the count of steps."""
  optimizer = state.optimizer._replace(step=state.optimizer.step + 1)
  return dataclasses.replace(state, optimizer=optimizer)


def state_specs(experiment: Experiment, model: NFNet, mesh: Mesh) -> TrainState:
  """Returns the partition specs of the state; all its trees are divided as the parameters are."""
  specs = parameter_specs(model, mesh)
  has_ema = experiment.optimizer.ema_decay is not None
  return TrainState(specs, SGDAGCState(step=P(), momentum=specs), specs if has_ema else None)


def abstract_state(
  experiment: Experiment, model: NFNet, optimizer: Optimizer, mesh: Mesh
) -> TrainState:
  """Returns shapes, dtypes and shardings of a run's state, without values.

  Args:
    experiment: experiment, which says whether a moving average is kept.
    model: the network.
    optimizer: optimizer from `train.step.optimizer.make_optimizer`.
    mesh: mesh from `train.step.sharding.mesh.make_mesh`.
  """
  shapes = jax.eval_shape(
    lambda parameters: initial_state(experiment, optimizer, parameters),
    arranged_parameter_shapes(model),
  )
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    shardings(state_specs(experiment, model, mesh), mesh),
  )
