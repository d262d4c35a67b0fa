"""Constants and formulas that the reference and the kernels of the convolution share."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Callable[[Array], Array]

VARIANCE_FLOOR = 1e-4
"""Smallest product of fan-in and variance: keeps the scale of a constant filter finite."""


def filter_statistics(
  weight: Float[Array, "*fan_in o"], gain: Float[Array, " o"] | Float[Array, "1 o"]
) -> tuple[Float[Array, "*ones o"], Float[Array, "*ones o"]]:
  """Returns the mean of each filter, and gain / sqrt(max(fan-in * variance, floor)).

  Both have the rank of `weight`. Mean and variance are made in one pass over the weight.

  Args:
    weight: float32; all axes but the last are the fan-in of an output channel.
    gain: float32, for each output channel.
  """
  axes = tuple(range(weight.ndim - 1))
  fan_in = math.prod(weight.shape[:-1])
  # Squares are summed relative to a value of the filter itself, so that a mean far from zero costs
  # no precision; the result does not depend on which value it is, so it has no derivative.
  origin = jax.lax.stop_gradient(weight[(slice(1),) * len(axes)])
  offset = weight - origin
  mean_offset = jnp.sum(offset, axis=axes, keepdims=True) / fan_in
  mean_square = jnp.sum(offset * offset, axis=axes, keepdims=True) / fan_in
  variance = mean_square - mean_offset * mean_offset
  scale = jax.lax.rsqrt(jnp.maximum(variance * fan_in, VARIANCE_FLOOR))
  return origin + mean_offset, scale * gain.reshape(origin.shape)


def standardize_weight(
  weight: Float[Array, "kh kw i o"], gain: Float[Array, " o"]
) -> Float[Array, "kh kw i o"]:
  """Returns filters with mean 0 and variance gain^2 / fan-in over each output channel, in float32.

  `i` counts the input channels of one group, and fan-in = kh * kw * i.
  """
  weight = weight.astype(jnp.float32)
  mean, scale = filter_statistics(weight, gain.astype(jnp.float32))
  return weight * scale - mean * scale
