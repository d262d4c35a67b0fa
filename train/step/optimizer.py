"""SGD with AGC as an optax transformation, and the moving average of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import kernels
from nfnet.block_arrangement import is_stacked
from train.step.parameter_groups import assign_groups, parameter_name


class SGDAGCState(NamedTuple):
  """State of `sgd_agc`.

  Attributes:
    step: updates done, int32.
    momentum: buffers like the parameters, float32.
  """

  step: Int[Array, ""]
  momentum: Any


class OnePassTransformation(NamedTuple):
  """An `optax.GradientTransformation` that can also write the new parameters itself.

  Attributes:
    init: parameters -> state, as optax has it.
    update: (gradients, state, parameters) -> (updates, state), likewise; for use inside of other
      transformations. The updates are differences of new and old parameters.
    step: (gradients, state, parameters, average) -> (parameters, state, average, gradient_norm):
      without further passes over memory for adding the updates and for the moving average, which
      may be None. The norm is that of all gradients together, before clipping.
  """

  init: optax.TransformInitFn
  update: optax.TransformUpdateFn
  step: Callable[[Any, Any, Any, Any], tuple[Any, Any, Any, Float[Array, ""]]]


def sgd_agc(
  learning_rate: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  clipping: float | None,
  average_decay: float | None = None,
  implementation: kernels.Implementation = "reference",
) -> OnePassTransformation:
  """Adaptive gradient clipping, L2 decay and Nesterov momentum (`kernels.sgd_agc`).

  Args:
    learning_rate: of the number of updates done before.
    momentum: Nesterov.
    weight_decay: L2, added after the clip, for the groups that decay.
    clipping: AGC's lambda, for the groups that are clipped; None clips nothing.
    average_decay: of the moving average of `step`, ramped as `ramped_decay` says.
    implementation: of the op.

  Parameters may have stacked blocks (`nfnet.block_arrangement`).
  """

  def init(parameters):
    return SGDAGCState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, parameters))

  def step(gradients, state, parameters, average=None):
    rate = jnp.asarray(learning_rate(state.step), jnp.float32)
    decay = None if average is None else ramped_decay(state.step, average_decay)

    paths, structure = jax.tree.flatten_with_path(parameters)
    names = [parameter_name(path) for path, _ in paths]
    # Each block of a stack has its own norms.
    stacks = [any(is_stacked(key.key) for key in path) for path, _ in paths]
    # What differs over axes of a mesh is a part of a parameter, with whole units.
    axes = [jax.typeof(x).manual_axis_type.varying for _, x in paths]
    groups = jax.tree.leaves(assign_groups(parameters))
    kinds = list(zip(groups, stacks, axes, strict=True))
    trees = [parameters, gradients, state.momentum, *([] if average is None else [average])]
    leaves = [dict(zip(names, structure.flatten_up_to(tree), strict=True)) for tree in trees]

    def step_of(kind):
      group, stacked, _ = kind
      own = [name for name, other in zip(names, kinds, strict=True) if other == kind]
      clips = clipping is not None and group.clipped
      return kernels.sgd_agc_step(
        *({name: tree[name] for name in own} for tree in leaves),
        learning_rate=rate,
        momentum=jnp.asarray(momentum, jnp.float32),
        weight_decay=jnp.asarray(weight_decay if group.decayed else 0.0, jnp.float32),
        clipping=jnp.asarray(clipping, jnp.float32) if clips else None,
        average_decay=decay,
        stacked=stacked,
        implementation=implementation,
      )

    steps = {kind: step_of(kind) for kind in dict.fromkeys(kinds)}
    square_sums = [
      jax.lax.psum(one.gradient_square_sum, tuple(axes)) for (_, _, axes), one in steps.items()
    ]

    def as_tree(kind):
      new = {name: x for one in steps.values() for name, x in getattr(one, kind).items()}
      return structure.unflatten(new[name] for name in names)

    return (
      as_tree("parameters"),
      SGDAGCState(state.step + 1, as_tree("momentum_buffers")),
      None if average is None else as_tree("averages"),
      jnp.sqrt(sum(square_sums)),
    )

  def update(gradients, state, parameters):
    new_parameters, state, _, _ = step(gradients, state, parameters)
    return jax.tree.map(jnp.subtract, new_parameters, parameters), state

  return OnePassTransformation(init, update, step)


def ramped_decay(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
  """min(decay, (1 + step) / (10 + step)), where `step` counts from 0 at the first update.

  The ramp lets a moving average forget its start (paper B, appendix A).
  """
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1 + step) / (10 + step))
