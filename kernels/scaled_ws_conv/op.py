"""The public ops: convolution with scaled weight standardization, at once or in two steps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from kernels.arguments import check_arrays, check_options, check_type, given
from kernels.dispatch import Implementation, dispatch
from kernels.layout import LANES
from kernels.mesh_axes import vary_alike
from kernels.scaled_ws_conv import pallas, reference
from kernels.scaled_ws_conv.filters import StandardizedFilters, filter_shape
from kernels.scaled_ws_conv.formulas import Activation, Standardization


class Convolution(NamedTuple):
  """The result of a convolution, and its input if that was requested.

  Attributes:
    result: the convolution's output, in the input's dtype.
    input: the input, or None. Using this copy downstream lets the backward kernel add the gradients
      of all uses.
  """

  result: Float[Array, "h2 w2 n o"]
  input: Float[Array, "h w n c"] | None


def scaled_ws_convolution(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  input_scale: Float[Array, ""] | None = None,
  *,
  stride: int = 1,
  groups: int = 1,
  pool: bool = False,
  activation: Activation | None = None,
  returns_input: bool = False,
  standardization: Standardization = "released",
  implementation: Implementation = "reference",
) -> Convolution:
  """Computes y = conv(pool(activation(x)), input_scale * standardized weight) + bias.

  This is `reference.scaled_ws_convolution`, with TPU kernels where they cover the arguments. The
  filters are standardized to mean 0 and variance gain^2 / fan-in over each output channel.

  Args:
    x: activations, [height, width, images, channels], in the compute dtype.
    weight: filters, [kernel height, kernel width, channels / groups, output channels], float32.
    gain: scale of each filter, [output channels], float32.
    bias: offset of each output channel, [output channels], float32.
    input_scale: factor of the activated input, a float32 scalar without a derivative; None is 1.
    stride: stride of the convolution, in pixels; its padding is "SAME" in XLA's sense.
    groups: number of groups of channels that are convolved separately.
    pool: whether 2x2 average pooling precedes the convolution.
    activation: activation of the input, or None.
    returns_input: whether the input is returned too.
    standardization: formula of weight standardization (`scaled_ws_conv.formulas.Standardization`).
    implementation: "reference" or "pallas".

  Returns:
    The result, [height / stride, width / stride, images, output channels] rounded up and in the
    dtype of `x`, with half of the height and width if it is pooled; and `x` if requested.

  Raises:
    ValueError: an argument is of another kind, or channels, groups and weight do not fit together.
  """
  check_arrays(
    x=(x, "height width images channels"),
    weight=(weight, "_ _ _ output_channels"),
    gain=(gain, "output_channels"),
    bias=(bias, "output_channels"),
    **given(input_scale=(input_scale, "")),
  )
  static = dict(
    stride=stride,
    groups=groups,
    pool=pool,
    activation=activation,
    returns_input=returns_input,
    standardization=standardization,
  )
  check_options(**static, implementation=implementation)
  channels, outputs = x.shape[-1], weight.shape[-1]
  if weight.shape[2] * groups != channels:
    raise ValueError(f"{weight.shape=}, {groups=}: input channels must be {channels=} / groups")
  if outputs % groups:
    raise ValueError(f"{weight.shape=}: output channels must be a multiple of {groups=}")
  if input_scale is not None:
    input_scale = jax.lax.stop_gradient(input_scale)
  return Convolution(
    *dispatch(
      "scaled_ws_conv",
      implementation,
      reference=functools.partial(reference.scaled_ws_convolution, **static),
      kernel=functools.partial(pallas.scaled_ws_convolution, **static),
      arguments=vary_alike(x, weight, gain, bias, input_scale),
    )
  )


def standardize_filters(
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  input_scale: Float[Array, ""] | None = None,
  *,
  dtype: DTypeLike = jnp.bfloat16,
  gradient_dtype: DTypeLike | None = jnp.float32,
  standardization: Standardization = "released",
  implementation: Implementation = "reference",
) -> StandardizedFilters:
  """Returns `input_scale` * standardized filters, which `standardized_convolution` takes.

  The two together compute what `scaled_ws_convolution` computes. Standardizing is the first step of
  its own where filters are used more than once, or travel between devices.

  Args:
    weight: filters, [kernel height, kernel width, channels / groups, output channels], float32.
    gain: scale of each filter, [output channels], float32.
    input_scale: factor of the activated input, a float32 scalar without a derivative; None is 1.
    dtype: compute dtype of the convolution.
    gradient_dtype: dtype in which the convolution returns the gradient of its filters, float32 or
      bfloat16. The gradients of weight and gain are float32. None, for inference, saves the memory
      that `StandardizedFilters.gradient_sink` takes; the filters have no gradient then.
    standardization: formula of weight standardization (`scaled_ws_conv.formulas.Standardization`).
    implementation: "reference" or "pallas".

  Returns:
    The filters in rows.

  Raises:
    ValueError: an argument is of another kind, or weight and gain do not fit together.
  """
  check_arrays(
    weight=(weight, "_ _ _ output_channels"),
    gain=(gain, "output_channels"),
    **given(input_scale=(input_scale, "")),
  )
  check_options(
    dtype=dtype,
    gradient_dtype=gradient_dtype,
    standardization=standardization,
    implementation=implementation,
  )
  if input_scale is not None:
    input_scale = jax.lax.stop_gradient(input_scale)
  static = dict(
    dtype=jnp.dtype(dtype),
    gradient_dtype=None if gradient_dtype is None else jnp.dtype(gradient_dtype),
    standardization=standardization,
  )
  return dispatch(
    "standardize_filters",
    implementation,
    reference=functools.partial(reference.standardize_filters, **static),
    kernel=functools.partial(pallas.standardize_filters, **static),
    arguments=vary_alike(weight, gain, input_scale),
  )


def standardized_convolution(
  x: Float[Array, "h w n c"],
  filters: StandardizedFilters,
  bias: Float[Array, " o"],
  *,
  stride: int = 1,
  groups: int = 1,
  pool: bool = False,
  activation: Activation | None = None,
  returns_input: bool = False,
  implementation: Implementation = "reference",
) -> Convolution:
  """Computes y = conv(pool(activation(x)), filters) + bias.

  Args:
    x: activations, [height, width, images, channels], in the compute dtype.
    filters: filters from `standardize_filters`, in the compute dtype.
    bias: offset of each output channel, [output channels], float32.
    stride: stride of the convolution, in pixels; its padding is "SAME" in XLA's sense.
    groups: number of groups of channels that are convolved separately.
    pool: whether 2x2 average pooling precedes the convolution.
    activation: activation of the input, or None.
    returns_input: whether the input is returned too.
    implementation: "reference" or "pallas".

  Returns:
    What `scaled_ws_convolution` returns. The gradient of the filters is that of their
    `gradient_sink`.

  Raises:
    ValueError: an argument is of another kind, or filters, input, bias and groups do not fit
      together.
  """
  check_arrays(x=(x, "height width images channels"), bias=(bias, "output_channels"))
  check_filters(filters)
  static = dict(
    stride=stride, groups=groups, pool=pool, activation=activation, returns_input=returns_input
  )
  check_options(**static, implementation=implementation)
  filter_shape(filters, x, bias, groups=groups)
  return Convolution(
    *dispatch(
      "standardized_convolution",
      implementation,
      reference=functools.partial(reference.standardized_convolution, **static),
      kernel=functools.partial(pallas.standardized_convolution, **static),
      arguments=vary_alike(x, filters, bias),
    )
  )


def check_filters(filters: Any) -> None:
  """Raises ValueError unless an argument is standardized filters."""
  check_type("filters", filters, StandardizedFilters, "from kernels.standardize_filters")
  axes = f"taps tiles output_channels {LANES}"
  check_arrays(rows=(filters.rows, axes))
  check_arrays(**given(gradient_sink=(filters.gradient_sink, axes)))
