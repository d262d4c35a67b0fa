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

from kernels.layout import LANES


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
  """Standardized filters, times the input's scale, with a row for each output channel.

  Rows can be divided among devices in any multiple of the few that fill a tile, and become whole
  again without being moved.

  Attributes:
    rows: [taps, tiles of input channels, output channels, 128] in the compute dtype, with zeros
      beyond the last input channel.
    gradient_sink: zeros like `rows`, in the dtype in which the gradient is wanted, or None if none
      is wanted. Nothing reads them. The derivative with respect to this field is the gradient of
      the rows, which a derivative with respect to the rows would round to their own dtype.
  """

  rows: Float[Array, "taps k o 128"]
  gradient_sink: Float[Array, "taps k o 128"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def rounded(
  exact: Float[Array, "taps k o 128"], dtype: jnp.dtype, gradient_dtype: jnp.dtype | None
) -> StandardizedFilters:
  """Returns rows as filters of a dtype, whose gradient comes from the sink.

  Args:
    exact: rows of standardized filters, float32.
    dtype: compute dtype.
    gradient_dtype: dtype of the gradient that the convolution returns, or None for no gradient.
  """
  return with_gradient_sink(exact.astype(dtype), gradient_dtype)


def _rounded_forward(exact, dtype, gradient_dtype):
  return rounded(exact, dtype, gradient_dtype), None


def _rounded_backward(dtype, gradient_dtype, _, cotangent):
  del dtype
  check_has_gradient(gradient_dtype)
  return (cotangent.gradient_sink.astype(jnp.float32),)


rounded.defvjp(_rounded_forward, _rounded_backward)


def with_gradient_sink(
  rows: Float[Array, "taps k o 128"], gradient_dtype: jnp.dtype | None
) -> StandardizedFilters:
  """Returns rows as filters, with zeros of a dtype for their gradient, or without if it is None."""
  if gradient_dtype is None:
    return StandardizedFilters(rows, None)
  return StandardizedFilters(rows, jnp.zeros_like(rows, gradient_dtype))


def filters_cotangent(
  gradient: Float[Array, "taps k o 128"], gradient_sink: Float[Array, "taps k o 128"] | None
) -> StandardizedFilters:
  """Returns the cotangent of filters with a sink, which takes their gradient in its dtype."""
  wanted = None if gradient_sink is None else gradient.astype(gradient_sink.dtype)
  return StandardizedFilters(None, wanted)


def check_has_gradient(gradient_dtype: jnp.dtype | None) -> None:
  """Raises a ValueError if filters that have no gradient are differentiated."""
  if gradient_dtype is None:
    raise ValueError(
      "filters were standardized with gradient_dtype=None, so they have no gradient; give a dtype"
    )


def filter_shape(
  filters: StandardizedFilters,
  x: Float[Array, "h w n c"],
  bias: Float[Array, " o"],
  *,
  groups: int,
) -> tuple[int, int, int, int]:
  """Returns the shape [kh, kw, i, o] of the filters that the rows were made of.

  Args:
    filters: filters of a square side.
    x: input of the convolution.
    bias: bias of the convolution.
    groups: number of groups of the convolution.

  Raises:
    ValueError: rows, input, bias and groups do not fit together.
  """
  taps, k, o, _ = filters.rows.shape
  side, inputs, outputs = math.isqrt(taps), x.shape[-1] // groups, bias.shape[0]
  if (side**2, k, o) != (taps, math.ceil(inputs / LANES), outputs):
    raise ValueError(f"{filters.rows.shape=}: do not fit {x.shape=}, {groups=} and {bias.shape=}")
  return side, side, inputs, outputs


def to_rows(weight: Float[Array, "taps i o"]) -> Float[Array, "taps k o 128"]:
  """Returns filters in rows, in the same dtype."""
  taps, inputs, outputs = weight.shape
  weight = jnp.pad(weight, ((0, 0), (0, -inputs % LANES), (0, 0)))
  return jnp.swapaxes(weight.reshape(taps, -1, LANES, outputs), 2, 3)


def from_rows(rows: Float[Array, "taps k o 128"], inputs: int) -> Float[Array, "taps i o"]:
  """Returns the filters that `to_rows` has put into rows.

  Args:
    rows: filters in rows.
    inputs: number of input channels of a group.
  """
  taps, _, outputs, _ = rows.shape
  return jnp.swapaxes(rows, 2, 3).reshape(taps, -1, outputs)[:, :inputs]
