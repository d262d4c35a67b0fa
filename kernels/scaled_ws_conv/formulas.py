"""Constants and formulas that the reference and the kernels of the convolution share."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Callable[[Array], Array]

VARIANCE_FLOOR = 1e-4
"""Lower bound of fan-in * variance, which keeps the scale of a constant filter finite."""


def filter_statistics(
  weight: Float[Array, "*fan_in o"], gain: Float[Array, " o"]
) -> tuple[Float[Array, " o"], Float[Array, " o"]]:
  """Returns the mean of each filter, and gain / sqrt(max(fan-in * variance, floor)).

  Mean and variance are computed in one pass over the weight.

  Args:
    weight: float32; all axes but the last are the fan-in of an output channel.
    gain: scale of each output channel's filter, float32.
  """
  *fan_in_shape, _ = weight.shape
  axes, fan_in = tuple(range(len(fan_in_shape))), math.prod(fan_in_shape)
  # Squares are summed relative to a value of the filter itself, so that a mean far from zero costs
  # no precision. The result does not depend on which value is chosen, so it gets no derivative.
  origin = jax.lax.stop_gradient(weight[(0,) * len(axes)])
  offset = weight - jnp.expand_dims(origin, axes)
  mean_offset = jnp.mean(offset, axis=axes)
  variance = jnp.mean(jnp.square(offset), axis=axes) - jnp.square(mean_offset)
  scale = jax.lax.rsqrt(jnp.maximum(variance * fan_in, VARIANCE_FLOOR)) * gain
  return origin + mean_offset, scale


def standardize_weight(
  weight: Float[Array, "kh kw i o"], gain: Float[Array, " o"]
) -> Float[Array, "kh kw i o"]:
  """Returns filters with mean 0 and variance gain^2 / fan-in over each output channel, in float32.

  `i` counts the input channels of one group, and fan-in = kh * kw * i.
  """
  weight = weight.astype(jnp.float32)
  mean, scale = filter_statistics(weight, gain.astype(jnp.float32))
  return weight * scale[None, None, None, :] - (mean * scale)[None, None, None, :]
