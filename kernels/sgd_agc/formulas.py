"""Norm floors and update equations that the reference and the kernels of SGD with AGC share."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PARAMETER_NORM_FLOOR = 1e-3
"""Lower bound of a unit's parameter norm in AGC, so that parameters that start at 0 can move."""
GRADIENT_NORM_FLOOR = 1e-6
"""Lower bound of the norm by which a unit's gradient is divided."""

Arrays = Mapping[str, Float[Array, "..."]]
"""Arrays by parameter name."""
Update = Callable[..., tuple[Float[Array, "..."], ...]]
"""Update of one parameter: (parameter, gradient, momentum_buffer, ema) -> (new parameter, new
momentum_buffer, new ema, sum of the squared gradient)."""


class HyperParameters(NamedTuple):
  """The hyper-parameters of one step, float32 scalars.

  Attributes:
    learning_rate: learning rate of this step.
    momentum: factor of the momentum buffer.
    weight_decay: L2 coefficient; this times the parameter is added to its gradient.
    clipping: AGC's lambda.
    ema_rate: 1 - decay of the moving average.
  """

  learning_rate: Float[Array, ""]
  momentum: Float[Array, ""]
  weight_decay: Float[Array, ""]
  clipping: Float[Array, ""]
  ema_rate: Float[Array, ""]


class Step(NamedTuple):
  """Results of one step, float32.

  Attributes:
    parameters: the new parameters.
    momentum_buffers: the new momentum buffers.
    emas: the new moving averages of the parameters, or None.
    gradient_square_sum: sum of the squares of all gradients before they were clipped, a scalar.
      AGC computes it anyway, and the norm of all gradients together is worth watching.
  """

  parameters: Arrays
  momentum_buffers: Arrays
  emas: Arrays | None
  gradient_square_sum: Float[Array, ""]


def clip_scale(
  parameter_norm: Float[Array, "..."],
  gradient_norm: Float[Array, "..."],
  clipping: Float[Array, ""],
) -> Float[Array, "..."]:
  """Returns the factor by which AGC multiplies the gradients of a unit, at most 1.

  Args:
    parameter_norm: norm of the unit's parameters.
    gradient_norm: norm of the unit's gradients.
    clipping: AGC's lambda.
  """
  largest = clipping * jnp.maximum(parameter_norm, PARAMETER_NORM_FLOOR)
  scale = largest / jnp.maximum(gradient_norm, GRADIENT_NORM_FLOOR)
  return jnp.where(gradient_norm > largest, scale, 1.0)


def nesterov_step(
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
  """Returns the new parameter and momentum buffer, given the clipped gradient."""
  gradient = gradient + weight_decay * parameter
  momentum_buffer = momentum * momentum_buffer + gradient
  return parameter - learning_rate * (gradient + momentum * momentum_buffer), momentum_buffer


def updated_ema(
  ema: Float[Array, "*p"], parameter: Float[Array, "*p"], ema_rate: Float[Array, ""]
) -> Float[Array, "*p"]:
  """Returns the moving average after moving it toward the parameter by the share `ema_rate`."""
  return ema + ema_rate * (parameter - ema)


def step_of_each(
  update: Update,
  parameters: Arrays,
  gradients: Arrays,
  momentum_buffers: Arrays,
  emas: Arrays | None,
  *,
  stacked: bool,
) -> Step:
  """Returns the step of several parameters, given the function that updates one.

  Args:
    update: function of one parameter and of its gradient, momentum buffer and moving average.
    parameters: parameters by name.
    gradients: gradients by parameter name.
    momentum_buffers: momentum buffers by parameter name.
    emas: moving averages by parameter name, or None.
    stacked: whether the first axis of each parameter counts parameters.
  """
  updates = {
    name: (jax.vmap(update) if stacked else update)(
      parameters[name],
      gradients[name],
      momentum_buffers[name],
      None if emas is None else emas[name],
    )
    for name in parameters
  }
  new_parameters, new_buffers, new_emas = (
    {name: update[i] for name, update in updates.items()} for i in range(3)
  )
  square_sum = sum(jnp.sum(update[3]) for update in updates.values())
  return Step(new_parameters, new_buffers, None if emas is None else new_emas, square_sum)
