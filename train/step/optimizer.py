"""The optimizer: SGD with Nesterov momentum, adaptive gradient clipping (AGC) and L2 decay.

The op `kernels.sgd_agc` does the arithmetic. This module divides the parameters into groups that
get the same hyper-parameters; `train.step.parameter_groups` decides which ones are clipped and
decay.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import kernels
from nfnet.model import parameter_name
from train.config.experiment import Experiment
from train.step.moving_average import ramped_decay
from train.step.sharding.mesh import SHARD_AXIS


class SGDAGCState(NamedTuple):
  """State of `sgd_agc`.

  Attributes:
    step: number of updates done, int32.
    momentum: momentum buffers like the parameters, float32.
  """

  step: Int[Array, ""]
  momentum: Any


class SGDAGCStep(NamedTuple):
  """Results of one step of `sgd_agc`.

  Attributes:
    parameters: the new parameters.
    state: the new state.
    ema: the new moving average of the parameters, or None.
    gradient_norm: norm of all gradients together, before clipping.
  """

  parameters: Any
  state: SGDAGCState
  ema: Any | None
  gradient_norm: Float[Array, ""]


class Optimizer(NamedTuple):
  """An optimizer as two pure functions.

  Unlike an `optax.GradientTransformation`, it writes the new parameters itself: adding updates to
  the parameters would be another pass over memory, and the moving average one more.

  Attributes:
    init: parameters -> state.
    step: (gradients, state, parameters, ema) -> `SGDAGCStep`; ema may be None.
  """

  init: Callable[[Any], SGDAGCState]
  step: Callable[[Any, SGDAGCState, Any, Any], SGDAGCStep]


def make_optimizer(experiment: Experiment, learning_rate: optax.Schedule, roles: Any) -> Optimizer:
  """Returns the optimizer that an experiment describes.

  Args:
    experiment: experiment with the hyper-parameters.
    learning_rate: schedule from `train.step.schedule`.
    roles: roles from `train.step.parameter_groups.parameter_roles`.
  """
  optimizer = experiment.optimizer
  return sgd_agc(
    learning_rate,
    roles,
    momentum=optimizer.momentum,
    weight_decay=optimizer.weight_decay,
    clipping=optimizer.agc_clipping,
    ema_decay=optimizer.ema_decay,
    implementation=experiment.model.kernels,
  )


def sgd_agc(
  learning_rate: optax.Schedule,
  roles: Any,
  *,
  momentum: float,
  weight_decay: float,
  clipping: float | None,
  ema_decay: float | None = None,
  implementation: kernels.Implementation = "reference",
) -> Optimizer:
  """Returns SGD with AGC for parameters of the given roles.

  Args:
    learning_rate: function of the number of updates done before.
    roles: `train.step.parameter_groups.ParameterRole`s in a tree like the parameters.
    momentum: coefficient of Nesterov momentum.
    weight_decay: coefficient of L2 decay, added after clipping to parameters that decay.
    clipping: AGC's lambda, for parameters that are clipped; None clips nothing.
    ema_decay: decay of the moving average, ramped by `train.step.moving_average.ramped_decay`.
    implementation: implementation of the op.
  """
  groups = _parameters_by_treatment(roles)

  def init(parameters):
    return SGDAGCState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, parameters))

  def step(gradients, state, parameters, ema=None):
    rate = jnp.asarray(learning_rate(state.step), jnp.float32)
    decay = None if ema is None else ramped_decay(state.step, ema_decay)
    trees = [parameters, gradients, state.momentum, *([] if ema is None else [ema])]
    leaves = [_by_name(tree, roles) for tree in trees]

    def step_of_group(treatment, names):
      clips = clipping is not None and treatment.clipped
      return kernels.sgd_agc_step(
        *({name: tree[name] for name in names} for tree in leaves),
        learning_rate=rate,
        momentum=jnp.asarray(momentum, jnp.float32),
        weight_decay=jnp.asarray(weight_decay if treatment.decayed else 0.0, jnp.float32),
        clipping=jnp.asarray(clipping, jnp.float32) if clips else None,
        ema_decay=decay,
        stacked=treatment.stacked,
        implementation=implementation,
      )

    steps = {treatment: step_of_group(treatment, names) for treatment, names in groups.items()}
    square_sums = [
      jax.lax.psum(one.gradient_square_sum, SHARD_AXIS)
      if treatment.sharded
      else one.gradient_square_sum
      for treatment, one in steps.items()
    ]

    def as_tree(field):
      new = {name: x for one in steps.values() for name, x in getattr(one, field).items()}
      return jax.tree.structure(parameters).unflatten(new[name] for name in leaves[0])

    return SGDAGCStep(
      as_tree("parameters"),
      SGDAGCState(state.step + 1, as_tree("momentum_buffers")),
      None if ema is None else as_tree("emas"),
      jnp.sqrt(sum(square_sums)),
    )

  return Optimizer(init, step)


class _Treatment(NamedTuple):
  """Properties that all parameters of one call of the op have in common."""

  clipped: bool
  decayed: bool
  stacked: bool
  sharded: bool


def _parameters_by_treatment(roles: Any) -> dict[_Treatment, list[str]]:
  """Returns the names of the parameters that one call of the op can update together."""
  groups: dict[_Treatment, list[str]] = {}
  for name, role in _by_name(roles, roles).items():
    treatment = _Treatment(
      role.clipped, role.decayed, role.stacked, sharded=role.sharded_axis is not None
    )
    groups.setdefault(treatment, []).append(name)
  return groups


def _by_name(tree: Any, roles: Any) -> dict[str, Any]:
  """Returns the leaves of a tree like `roles` by the names of the parameters.

  Raises:
    ValueError: the tree is not like `roles`.
  """
  paths, structure = jax.tree.flatten_with_path(roles)
  names = [parameter_name(path) for path, _ in paths]
  return dict(zip(names, structure.flatten_up_to(tree), strict=True))
