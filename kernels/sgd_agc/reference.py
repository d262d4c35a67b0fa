"""One step of SGD with AGC, L2 decay and Nesterov momentum in plain JAX: the op's specification.

Paper B: https://arxiv.org/abs/2102.06171, section 4, equation 3; details as in the released code.
All arithmetic is float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.sgd_agc.formulas import (
  Arrays,
  Step,
  clip_scale,
  nesterov_step,
  step_of_each,
  updated_ema,
)


def unit_norm(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns the L2 norm of each unit, broadcastable against `x`.

  A unit is what feeds one output channel: HWIO filters over (H, W, I), IO matrices over I;
  vectors and scalars are one unit.

  Raises:
    ValueError: `x` has three or more than four dimensions.
  """
  axes_by_rank = {0: None, 1: None, 2: (0,), 4: (0, 1, 2)}
  if x.ndim not in axes_by_rank:
    raise ValueError(f"{x.shape=}: a parameter must have 0, 1, 2 (IO) or 4 (HWIO) dimensions")
  squares = jnp.square(x.astype(jnp.float32))
  return jnp.sqrt(jnp.sum(squares, axis=axes_by_rank[x.ndim], keepdims=True))


def clip_gradient(
  gradient: Float[Array, "*p"], parameter: Float[Array, "*p"], clipping: Float[Array, ""]
) -> Float[Array, "*p"]:
  """Scales each unit's gradient down to at most `clipping` times the unit's parameter norm."""
  gradient = gradient.astype(jnp.float32)
  return gradient * clip_scale(unit_norm(parameter), unit_norm(gradient), clipping)


def sgd_agc_step(
  parameters: Arrays,
  gradients: Arrays,
  momentum_buffers: Arrays,
  emas: Arrays | None,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  ema_decay: Float[Array, ""] | None,
  *,
  stacked: bool,
) -> Step:
  """Returns the new parameters, momentum buffers and moving averages.

  For each unit of each parameter, which is what feeds one output channel,

      largest = clipping * max(norm(parameter), PARAMETER_NORM_FLOOR)
      scale = largest / max(norm(gradient), GRADIENT_NORM_FLOOR)
      clipped = gradient * (scale if norm(gradient) > largest else 1)
      g = clipped + weight_decay * parameter
      buffer = momentum * buffer + g
      parameter = parameter - learning_rate * (g + momentum * buffer)
      ema = ema + (1 - ema_decay) * (parameter - ema)

  Args:
    parameters: parameters by name, float32.
    gradients: averages over all examples of the global batch, float32 or bfloat16.
    momentum_buffers: momentum buffers, float32, initially zero.
    emas: moving averages of the parameters over steps, float32, or None.
    learning_rate: learning rate of this step.
    momentum: factor of the momentum buffers, 0.9 in the papers.
    weight_decay: L2 coefficient; 0 for gains, biases and skip gains.
    clipping: AGC's lambda; None disables clipping, as for the classifier's weight.
    ema_decay: decay of the moving averages; None if there are none.
    stacked: whether the first axis of each array counts parameters, which have their own norms.
  """

  def update(parameter, gradient, momentum_buffer, ema):
    gradient = gradient.astype(jnp.float32)
    square_sum = jnp.sum(jnp.square(gradient))
    if clipping is not None:
      gradient = clip_gradient(gradient, parameter, clipping)
    parameter, momentum_buffer = nesterov_step(
      parameter, gradient, momentum_buffer, learning_rate, momentum, weight_decay
    )
    if ema is not None:
      ema = updated_ema(ema, parameter, 1 - ema_decay)
    return parameter, momentum_buffer, ema, square_sum

  return step_of_each(update, parameters, gradients, momentum_buffers, emas, stacked=stacked)
