"""Convolution with scaled weight standardization in plain JAX: the specification of the op.

Paper B: https://arxiv.org/abs/2102.06171, section 2, equation 2; the gain and the floor under the
variance are those of the released code, the alternative to the floor is timm's (`formulas.py`).
Activations are HWNC ([height, width, batch, channels]): a shift in space is then an index of a
major dimension, which costs a TPU kernel nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.scaled_ws_conv.filters import (
  StandardizedFilters,
  filter_shape,
  filters_cotangent,
  from_rows,
  rounded,
  to_rows,
)
from kernels.scaled_ws_conv.formulas import Activation, Standardization, standardize_weight


def average_pool(x: Float[Array, "h w n c"]) -> Float[Array, "h2 w2 n c"]:
  """Averages 2x2 pixels with stride 2; at an odd edge, only over the pixels that exist."""

  def window_sum(array):
    return jax.lax.reduce_window(array, 0.0, jax.lax.add, (2, 2, 1, 1), (2, 2, 1, 1), "SAME")

  height, width = x.shape[:2]
  total = window_sum(x.astype(jnp.float32))
  if height % 2 == 0 and width % 2 == 0:
    return (total * 0.25).astype(x.dtype)
  count = window_sum(jnp.ones((height, width, 1, 1), jnp.float32))
  return (total / count).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(activation: Activation, x: Array) -> Array:
  """Computes `activation(x)` in float32 and returns it as x.dtype.

  The backward pass recomputes everything from `x`: left to itself, JAX would save four float32
  arrays for a gelu, and a scan over blocks would write every one of them to memory.
  """
  return activation(x.astype(jnp.float32)).astype(x.dtype)


def _activate_forward(activation: Activation, x: Array) -> tuple[Array, Array]:
  return activate(activation, x), x


def _activate_backward(activation: Activation, x: Array, cotangent: Array) -> tuple[Array]:
  _, pullback = jax.vjp(activation, x.astype(jnp.float32))
  (gradient,) = pullback(cotangent.astype(jnp.float32))
  return (gradient.astype(x.dtype),)


activate.defvjp(_activate_forward, _activate_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
  x: Float[Array, "h w n c"], weight: Float[Array, "kh kw i o"], stride: int, groups: int
) -> Float[Array, "h2 w2 n o"]:
  """Computes a grouped convolution with "SAME" padding.

  XLA's CPU backend is slow at two of the computations: the weight gradient of a grouped convolution
  takes 10 to 40 times as long as the gradients of its groups one by one, and a 1x1 convolution up
  to twice as long as the same matrix product (BUILD_NOTES.md, "Convolutions on a CPU"). On a CPU
  these are computed the faster way, so that small networks train there. The choice is made when the
  program is lowered.
  """
  if weight.shape[:2] == (1, 1) and stride == groups == 1:
    return jax.lax.platform_dependent(
      x,
      weight,
      cpu=lambda x, weight: jnp.einsum("hwnc,co->hwno", x, weight[0, 0]),
      default=lambda x, weight: _convolve(x, weight, 1, 1),
    )
  return _convolve(x, weight, stride, groups)


def _convolve(x: Array, weight: Array, stride: int, groups: int) -> Array:
  return jax.lax.conv_general_dilated(
    x,
    weight,
    window_strides=(stride, stride),
    padding="SAME",
    dimension_numbers=("HWNC", "HWIO", "HWNC"),
    feature_group_count=groups,
  )


def _convolve_forward(x, weight, stride, groups):
  return convolve(x, weight, stride, groups), (x, weight)


def _convolve_backward(stride, groups, residuals, cotangent):
  # The choice of platform stays outside of differentiation: differentiating through it would save
  # the residuals of both branches.
  def pull_back(x, weight, cotangent):
    _, pullback = jax.vjp(lambda x, w: _convolve(x, w, stride, groups), x, weight)
    return pullback(cotangent)

  def pull_back_on_cpu(x, weight, cotangent):
    if weight.shape[:2] == (1, 1) and stride == groups == 1:
      x_gradient = jnp.einsum("hwno,co->hwnc", cotangent, weight[0, 0])
      return x_gradient, jnp.einsum("hwnc,hwno->co", x, cotangent)[None, None]
    _, pullback = jax.vjp(lambda x: _convolve(x, weight, stride, groups), x)
    weight_gradients = [
      jax.vjp(lambda w, part=part: _convolve(part, w, stride, 1), weight_part)[1](cotangent_part)[0]
      for part, weight_part, cotangent_part in zip(
        *(jnp.split(array, groups, axis=-1) for array in (x, weight, cotangent)), strict=True
      )
    ]
    return *pullback(cotangent), jnp.concatenate(weight_gradients, axis=-1)

  return jax.lax.platform_dependent(*residuals, cotangent, cpu=pull_back_on_cpu, default=pull_back)


convolve.defvjp(_convolve_forward, _convolve_backward)


def scaled_ws_convolution(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  input_scale: Float[Array, ""] | None,
  *,
  stride: int,
  groups: int,
  pool: bool,
  activation: Activation | None,
  returns_input: bool,
  standardization: Standardization,
) -> tuple[Float[Array, "h2 w2 n o"], Float[Array, "h w n c"] | None]:
  """Computes y = conv(pool(activation(x)), input_scale * standardized weight) + bias.

  Scaling the weights has the same effect as scaling the input, and there are far fewer weights.

  Args:
    x: activations in the compute dtype, which is also the dtype of the result.
    weight: filters; i = c / groups.
    gain: scale of each output channel's filter.
    bias: offset of each output channel.
    input_scale: factor of the activated input: the activation's gain times a block's beta; None
      is 1. It is a constant: there is no derivative with respect to it.
    stride: stride of the convolution, whose padding is "SAME" in XLA's sense.
    groups: number of groups; output channel k sees the input channels of group k * groups // o.
    pool: whether 2x2 average pooling precedes the convolution.
    activation: activation of the input, or None.
    returns_input: whether the input is returned too.
    standardization: see `formulas.inverse_deviation`.

  Returns:
    The result, and `x` if `returns_input`, otherwise None.
  """
  weight = standardize_weight(weight, gain, standardization)
  if input_scale is not None:
    weight = weight * input_scale
  y = _activate_pool_convolve(x, weight, bias, stride, groups, pool, activation)
  return y, x if returns_input else None


def standardize_filters(
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  input_scale: Float[Array, ""] | None,
  *,
  dtype: jnp.dtype,
  gradient_dtype: jnp.dtype | None,
  standardization: Standardization,
) -> StandardizedFilters:
  """Returns `input_scale` * standardized weight in rows of a dtype.

  Args:
    weight: filters.
    gain: scale of each output channel's filter.
    input_scale: factor of the activated input; None is 1.
    dtype: compute dtype, in which the convolution multiplies.
    gradient_dtype: dtype in which the convolution returns the gradient of the filters; None if
      they are not differentiated.
    standardization: see `formulas.inverse_deviation`.
  """
  weight = standardize_weight(weight, gain, standardization)
  if input_scale is not None:
    weight = weight * input_scale
  return rounded(to_rows(weight.reshape(-1, *weight.shape[2:])), dtype, gradient_dtype)


def standardized_convolution(
  x: Float[Array, "h w n c"],
  filters: StandardizedFilters,
  bias: Float[Array, " o"],
  *,
  stride: int,
  groups: int,
  pool: bool,
  activation: Activation | None,
  returns_input: bool,
) -> tuple[Float[Array, "h2 w2 n o"], Float[Array, "h w n c"] | None]:
  """Computes y = conv(pool(activation(x)), filters) + bias for standardized filters.

  The arguments are those of `scaled_ws_convolution`. The gradient of the filters goes to their
  sink.
  """
  side, _, inputs, outputs = filter_shape(filters, x, bias, groups=groups)
  weight = from_rows(_differentiable_rows(filters), inputs)
  weight = weight.reshape(side, side, inputs, outputs)
  y = _activate_pool_convolve(x, weight, bias, stride, groups, pool, activation)
  return y, x if returns_input else None


@jax.custom_vjp
def _differentiable_rows(filters: StandardizedFilters) -> Float[Array, "taps k o 128"]:
  """Returns the rows, with the gradient going to the sink."""
  return filters.rows


def _rows_forward(filters):
  return filters.rows, filters.gradient_sink


def _rows_backward(gradient_sink, cotangent):
  return (filters_cotangent(cotangent, gradient_sink),)


_differentiable_rows.defvjp(_rows_forward, _rows_backward)


def _activate_pool_convolve(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  bias: Float[Array, " o"],
  stride: int,
  groups: int,
  pool: bool,
  activation: Activation | None,
) -> Float[Array, "h2 w2 n o"]:
  dtype = x.dtype
  if activation is not None:
    x = activate(activation, x)
  if pool:
    x = average_pool(x)
  y = convolve(x, weight.astype(dtype), stride, groups)
  # The sum is in float32 so that the bias's gradient is summed in float32.
  return (y.astype(jnp.float32) + bias.astype(jnp.float32)[None, None, None, :]).astype(dtype)
