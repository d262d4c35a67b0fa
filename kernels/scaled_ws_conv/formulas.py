"""Constants, types and formulas that the reference and the kernels of the convolution share."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Activation = Callable[[Array], Array]

Standardization = Literal["released", "timm"]
"""The way in which the scale of a constant filter is kept finite: see `inverse_deviation`."""

VARIANCE_FLOOR = 1e-4
"""Lower bound of fan-in * variance in the code released with paper B."""
VARIANCE_EPSILON = 1e-5
"""Addend of the variance in timm's `dm_nfnet_f*`, which standardize by batch normalization."""


class PendingSum(NamedTuple):
  """The sum shortcut + scale * branch, which the convolution that reads it may add up.

  Adding up takes as long as HBM needs for three wide arrays, and so do, for two, the sums over
  space that the derivative needs. A convolution does both while its matrix units are busy.

  Its derivatives are not those of the formula. Who adds up gets the cotangent of the sum, and
  passes on what who made the branch cannot compute without reading wide arrays once more:

  - in place of the derivatives with respect to branch and shortcut, the sum's cotangent itself,
    which who made the branch scales;
  - in place of those with respect to scale and sink, the sums over space of cotangent * branch and
    of the cotangent, in float32.

  Attributes:
    branch: the residual branch, in the compute dtype.
    shortcut: array of the branch's shape and dtype.
    scale: factor of each image and channel of the branch, float32.
    sums_sink: zeros like `scale`, which nothing reads.
  """

  branch: Float[Array, "h w n c"]
  shortcut: Float[Array, "h w n c"]
  scale: Float[Array, "n c"]
  sums_sink: Float[Array, "n c"]


def inverse_deviation(
  squared_deviation: Float[Array, "*o"], fan_in: int, standardization: Standardization
) -> Float[Array, "*o"]:
  """Returns 1 / sqrt(fan-in * variance), kept finite as the released code or as timm does it.

  "released" bounds fan-in * variance by `VARIANCE_FLOOR`, so an ordinary filter is not changed at
  all. "timm" adds `VARIANCE_EPSILON` to the variance: with 1536 inputs and the variance 1 / 1536 of
  a new filter, the result is 0.8 % smaller.

  Args:
    squared_deviation: fan-in * variance of each filter, float32.
    fan_in: number of inputs of a filter.
    standardization: "released" or "timm".

  Raises:
    ValueError: there is no such standardization.
  """
  if standardization == "released":
    return jax.lax.rsqrt(jnp.maximum(squared_deviation, VARIANCE_FLOOR))
  if standardization == "timm":
    return jax.lax.rsqrt(squared_deviation + fan_in * VARIANCE_EPSILON)
  raise ValueError(f'{standardization=}: must be "released" or "timm"')


def inverse_deviation_varies(
  squared_deviation: Float[Array, "*o"], standardization: Standardization
) -> Bool[Array, "*o"] | bool:
  """Returns where `inverse_deviation` varies with the squared deviation: not where it is bounded.

  Args:
    squared_deviation: fan-in * variance of each filter, float32.
    standardization: see `inverse_deviation`.
  """
  return squared_deviation > VARIANCE_FLOOR if standardization == "released" else True


def filter_statistics(
  weight: Float[Array, "*fan_in o"], gain: Float[Array, " o"], standardization: Standardization
) -> tuple[Float[Array, " o"], Float[Array, " o"]]:
  """Returns the mean of each filter, and gain * `inverse_deviation`.

  Mean and variance are computed in one pass over the weight.

  Args:
    weight: float32; all axes but the last are the fan-in of an output channel.
    gain: scale of each output channel's filter, float32.
    standardization: see `inverse_deviation`.
  """
  *fan_in_shape, _ = weight.shape
  axes, fan_in = tuple(range(len(fan_in_shape))), math.prod(fan_in_shape)
  # Squares are summed relative to a value of the filter itself, so that a mean far from zero costs
  # no precision. The result does not depend on which value is chosen, so it gets no derivative.
  origin = jax.lax.stop_gradient(weight[(0,) * len(axes)])
  offset = weight - jnp.expand_dims(origin, axes)
  mean_offset = jnp.mean(offset, axis=axes)
  variance = jnp.mean(jnp.square(offset), axis=axes) - jnp.square(mean_offset)
  scale = inverse_deviation(variance * fan_in, fan_in, standardization) * gain
  return origin + mean_offset, scale


def standardize_weight(
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  standardization: Standardization,
) -> Float[Array, "kh kw i o"]:
  """Returns filters with mean 0 and variance gain^2 / fan-in over each output channel, in float32.

  `i` counts the input channels of one group, and fan-in = kh * kw * i. With "timm", the variance is
  smaller: see `inverse_deviation`.
  """
  weight = weight.astype(jnp.float32)
  mean, scale = filter_statistics(weight, gain.astype(jnp.float32), standardization)
  return weight * scale[None, None, None, :] - (mean * scale)[None, None, None, :]
