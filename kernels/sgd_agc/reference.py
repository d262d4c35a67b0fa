"""One parameter's step of SGD with AGC, L2 decay and Nesterov momentum: the op's specification.

Paper B: https://arxiv.org/abs/2102.06171, section 4, equation 3; details as in the released code.
All arithmetic is float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

PARAMETER_NORM_FLOOR = 1e-3
"""So that parameters that start at zero can move."""
GRADIENT_NORM_FLOOR = 1e-6


def unit_norm(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """L2 norm of each unit, broadcastable against `x`.

  A unit is what feeds one output channel: HWIO filters over (H, W, I), IO matrices over I;
  vectors and scalars are one unit.

  Raises:
    ValueError: `x` has three or more than four dimensions.
  """
  axes_by_rank = {0: None, 1: None, 2: (0,), 4: (0, 1, 2)}
  if x.ndim not in axes_by_rank:
    raise ValueError(f"{x.shape=}: a parameter has 0, 1, 2 (IO) or 4 (HWIO) dimensions")
  squares = jnp.square(x.astype(jnp.float32))
  return jnp.sqrt(jnp.sum(squares, axis=axes_by_rank[x.ndim], keepdims=True))


def clip_gradient(
  gradient: Float[Array, "*p"], parameter: Float[Array, "*p"], clipping: Float[Array, ""]
) -> Float[Array, "*p"]:
  """Scales each unit's gradient down to at most `clipping` times the unit's parameter norm."""
  gradient = gradient.astype(jnp.float32)
  largest = clipping * jnp.maximum(unit_norm(parameter), PARAMETER_NORM_FLOOR)
  norm = unit_norm(gradient)
  clipped = gradient * (largest / jnp.maximum(norm, GRADIENT_NORM_FLOOR))
  return jnp.where(norm > largest, clipped, gradient)


def sgd_agc(
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  average: Float[Array, "*p"] | None,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  average_decay: Float[Array, ""] | None,
) -> tuple[Float[Array, "*p"], Float[Array, "*p"], Float[Array, "*p"] | None, Float[Array, ""]]:
  """The new parameter, momentum buffer and moving average.

      g = clip(gradient) + weight_decay * parameter
      buffer = momentum * buffer + g
      parameter = parameter - learning_rate * (g + momentum * buffer)
      average = average + (1 - average_decay) * (parameter - average)

  Args:
    parameter: float32.
    gradient: already averaged over all examples of the global batch.
    momentum_buffer: float32, zeros at first.
    average: of the parameter over steps, float32, or None.
    learning_rate: of this step.
    momentum: 0.9 in the papers.
    weight_decay: L2; 0 for gains, biases and skip gains.
    clipping: AGC's lambda; None does not clip (the classifier's weight).
    average_decay: None without an average.

  Returns:
    The three, and the sum of the squared gradient before clipping.
  """
  gradient = gradient.astype(jnp.float32)
  square_sum = jnp.sum(jnp.square(gradient))
  if clipping is not None:
    gradient = clip_gradient(gradient, parameter, clipping)
  gradient = gradient + weight_decay * parameter
  momentum_buffer = momentum * momentum_buffer + gradient
  parameter = parameter - learning_rate * (gradient + momentum * momentum_buffer)
  if average is not None:
    average = average + (1 - average_decay) * (parameter - average)
  return parameter, momentum_buffer, average, square_sum
