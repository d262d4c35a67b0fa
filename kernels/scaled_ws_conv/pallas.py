"""The convolution with implementation="pallas": what the kernels cover, and how they are called."""

import functools
from collections.abc import Sequence

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.layout import LANES, SUBLANES
from kernels.scaled_ws_conv.filters import (
  RawFilters,
  StandardizedFilters,
  filter_shape,
  rounded,
  to_rows,
)
from kernels.scaled_ws_conv.formulas import Activation, Standardization, standardize_weight
from kernels.scaled_ws_conv.problem import Problem, problem_of
from kernels.scaled_ws_conv.tile import choose_both
from kernels.scaled_ws_conv.vjp import can_standardize, convolve, standardize

_PRIMITIVES_NOT_ON_TPU = frozenset({"erfc", "expm1"})
"""Operations of activations that Pallas cannot lower for TPU, as of jax 0.10."""


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
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for filters other than 1x1 and 3x3, strides above 2, odd sides with a
      stride or pooling, channels that do not fill tiles, activations other than bfloat16 and
      float32, parameters other than float32, and what `check_activation` refuses.
  """
  check(x, (weight, gain, bias), activation)
  problem = problem_of(
    x.shape,
    weight.shape,
    stride=stride,
    groups=groups,
    pool=pool,
    returns_input=returns_input,
    itemsize=x.dtype.itemsize,
  )
  return _convolution(
    problem, activation, standardization, x, raw_filters(weight, gain, input_scale), bias
  )


def standardize_filters(
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  input_scale: Float[Array, ""] | None,
  *,
  dtype: jnp.dtype,
  gradient_dtype: jnp.dtype | None,
  standardization: Standardization,
) -> StandardizedFilters:
  """Computes what the reference computes, from the same arguments.

  Filters whose channels do not fill tiles are left to XLA; only small ones do not.
  """
  raw = raw_filters(weight, gain, input_scale)
  if not can_standardize(raw.weight.shape):
    exact = standardize_weight(weight, gain, standardization) * raw.input_scale
    return rounded(to_rows(exact.reshape(raw.weight.shape)), dtype, gradient_dtype)
  return standardize(dtype, gradient_dtype, standardization, raw)


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
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for what `scaled_ws_convolution` does not cover, and filters in another
      dtype than the activations.
  """
  check(x, (bias,), activation)
  if filters.rows.dtype != x.dtype:
    raise NotImplementedError("filters in another dtype than the activations")
  problem = problem_of(
    x.shape,
    filter_shape(filters, x, bias, groups=groups),
    stride=stride,
    groups=groups,
    pool=pool,
    returns_input=returns_input,
    itemsize=x.dtype.itemsize,
    standardized=True,
  )
  return _convolution(problem, activation, "released", x, filters, bias)


def _convolution(
  problem: Problem,
  activation: Activation | None,
  standardization: Standardization,
  x: Float[Array, "h w n c"],
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " o"],
) -> tuple[Float[Array, "h2 w2 n o"], Float[Array, "h w n c"] | None]:
  """Pads the batch and calls the kernels."""
  passes = choose_both(problem)
  height, width, images, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, 0), (0, problem.images - images), (0, 0)))
  result, x = convolve(
    passes, activation, standardization, x.reshape(problem.input_shape), filters, bias
  )
  return (
    result[:, :, 0, :images],
    x.reshape(height, width, -1, channels)[:, :, :images] if problem.returns_input else None,
  )


def raw_filters(
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  input_scale: Float[Array, ""] | None,
) -> RawFilters:
  """Returns filters as the kernels take them; an `input_scale` of None is 1."""
  scale = jnp.ones((), jnp.float32) if input_scale is None else input_scale.astype(jnp.float32)
  return RawFilters(weight.reshape(-1, *weight.shape[2:]), gain, scale)


def check(
  x: Float[Array, "h w n c"],
  parameters: Sequence[Float[Array, "..."]],
  activation: Activation | None,
) -> None:
  """Checks that the kernels cover these dtypes and this activation.

  Raises:
    NotImplementedError: the kernels do not cover them.
  """
  if {parameter.dtype for parameter in parameters} != {jnp.dtype(jnp.float32)}:
    raise NotImplementedError("parameters other than float32")
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError("activations other than bfloat16 and float32")
  if activation is not None:
    check_activation(activation)


def check_activation(activation: Activation) -> None:
  """Checks that each intermediate value has the input's shape or is a scalar, and can be computed.

  Raises:
    NotImplementedError: the kernels do not cover the activation.
  """
  if reason := _reason_against(activation):
    raise NotImplementedError(reason)


@functools.cache
def _reason_against(activation: Activation) -> str | None:
  """Returns why the kernels do not cover an activation, or None if they do."""
  shape = (SUBLANES, LANES)

  def equations(jaxpr):
    for equation in jaxpr.eqns:
      yield equation
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from equations(inner)

  jaxpr = jax.make_jaxpr(activation)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
  for equation in equations(jaxpr):
    if {variable.aval.shape for variable in equation.outvars} - {shape, ()}:
      return "an activation that is not elementwise"
    if equation.primitive.name in _PRIMITIVES_NOT_ON_TPU:
      return f"an activation with {equation.primitive.name}"
  return None
