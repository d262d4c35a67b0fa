"""The filters of a convolution as its kernels take them: raw, or standardized beforehand.

A training step uses each filter in two passes, so it standardizes them once, in the compute dtype,
and the kernels read half of the bytes. Callers that have nothing but a network's parameters pass
these, and the kernels standardize them in VMEM.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIDE = 128
"""Rows and columns of the matrix unit, and of a square."""


class RawFilters(NamedTuple):
  """Filters that the kernels standardize.

  Attributes:
    weight: filters, [taps, i, o], float32; i counts the input channels of a group.
    gain: scale of each filter, [o], float32.
    input_scale: factor of the activated input, a float32 scalar without a derivative.
  """

  weight: Float[Array, "taps i o"]
  gain: Float[Array, " o"]
  input_scale: Float[Array, ""]


class StandardizedFilters(NamedTuple):
  """Standardized filters, times the input's scale, cut into squares for the matrix unit.

  Attributes:
    squares: [taps, tiles of input channels, tiles of output channels, 128, 128] in the compute
      dtype, with zeros beyond the last channel.
    gradient_sink: zeros like `squares`, in the dtype in which the gradient is wanted. Nothing reads
      them. The derivative with respect to this field is the gradient of the squares, which a
      derivative with respect to the squares would round to their own dtype.
  """

  squares: Float[Array, "taps k j 128 128"]
  gradient_sink: Float[Array, "taps k j 128 128"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def rounded(
  exact: Float[Array, "taps k j 128 128"], dtype: jnp.dtype, gradient_dtype: jnp.dtype
) -> StandardizedFilters:
  """Returns squares as filters of a dtype, whose gradient comes from the sink.

  Args:
    exact: standardized filters in squares, float32.
    dtype: compute dtype.
    gradient_dtype: dtype of the gradient that the convolution returns.
  """
  return StandardizedFilters(exact.astype(dtype), zeros_like(exact, gradient_dtype))


def _rounded_forward(exact, dtype, gradient_dtype):
  return rounded(exact, dtype, gradient_dtype), None


def _rounded_backward(dtype, gradient_dtype, _, cotangent):
  del dtype, gradient_dtype
  return (cotangent.gradient_sink.astype(jnp.float32),)


rounded.defvjp(_rounded_forward, _rounded_backward)


def zeros_like(array: Array, dtype: jnp.dtype) -> Array:
  """Returns zeros that vary over the same mesh axes as an array."""
  zeros = jnp.zeros(array.shape, dtype)
  axes = jax.typeof(array).manual_axis_type.varying
  return jax.lax.pcast(zeros, tuple(axes), to="varying") if axes else zeros


def filter_shape(
  filters: StandardizedFilters,
  x: Float[Array, "h w n c"],
  bias: Float[Array, " o"],
  *,
  groups: int,
) -> tuple[int, int, int, int]:
  """Returns the shape [kh, kw, i, o] of the filters that the squares were made of.

  Args:
    filters: square filters.
    x: input of the convolution.
    bias: bias of the convolution.
    groups: number of groups of the convolution.

  Raises:
    ValueError: squares, input, bias and groups do not fit together.
  """
  taps, k, j, *_ = filters.squares.shape
  side, inputs, outputs = math.isqrt(taps), x.shape[-1] // groups, bias.shape[0]
  if (side**2, k, j) != (taps, math.ceil(inputs / SIDE), math.ceil(outputs / SIDE)):
    raise ValueError(
      f"{filters.squares.shape=}: do not fit {x.shape=}, {groups=} and {bias.shape=}"
    )
  return side, side, inputs, outputs


def to_squares(weight: Float[Array, "taps i o"]) -> Float[Array, "taps k j 128 128"]:
  """Returns filters in squares, in the same dtype."""
  taps, inputs, outputs = weight.shape
  weight = jnp.pad(weight, ((0, 0), (0, -inputs % SIDE), (0, -outputs % SIDE)))
  weight = weight.reshape(taps, math.ceil(inputs / SIDE), SIDE, math.ceil(outputs / SIDE), SIDE)
  return jnp.swapaxes(weight, 2, 3)


def from_squares(
  squares: Float[Array, "taps k j 128 128"], inputs: int, outputs: int
) -> Float[Array, "taps i o"]:
  """Returns the filters that `to_squares` has cut into squares.

  Args:
    squares: filters in squares.
    inputs: number of input channels of a group.
    outputs: number of output channels.
  """
  taps, k, j, *_ = squares.shape
  return jnp.swapaxes(squares, 2, 3).reshape(taps, k * SIDE, j * SIDE)[:, :inputs, :outputs]
