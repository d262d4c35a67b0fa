"""The convolution as Pallas TPU kernels, with all derivatives.

`convolve` is the differentiable function. Ops that contain this convolution call `forward` and
`backward` in their own derivative.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jaxtyping import Array, Float

from kernels.scaled_ws_conv import (
  backward_tpu,
  forward_tpu,
  standardize_rows_tpu,
  standardize_tpu,
)
from kernels.scaled_ws_conv.filters import (
  RawFilters,
  StandardizedFilters,
  check_has_gradient,
  filters_cotangent,
  with_gradient_sink,
)
from kernels.scaled_ws_conv.formulas import Activation, PendingSum, Standardization
from kernels.scaled_ws_conv.tile import Passes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def convolve(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  x: Float[Array, "h a w b n c"] | PendingSum,
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " o"],
) -> tuple[Float[Array, "h w q n o"], Float[Array, "h a w b n c"] | None]:
  """Returns the result, and the input if the problem returns it.

  There is no derivative with respect to the input's scale, nor to rows: see
  `StandardizedFilters.gradient_sink`. For the derivatives of a sum, see `PendingSum`.

  Args:
    passes: blocks of both passes.
    activation: activation of the input, or None.
    standardization: see `formulas.inverse_deviation`; used for raw filters only.
    x: input, of shape `Problem.input_shape`, or a sum if the problem says so.
    filters: filters of the kind that the problem names.
    bias: offset of each output channel, float32.
  """
  result, _, residuals = forward(passes, activation, standardization, x, filters, bias)
  return result, residuals.x if passes.forward.problem.returns_input else None


def can_standardize(weight_shape: tuple[int, ...]) -> bool:
  """Returns whether `standardize` covers filters of a shape [taps, i, o]."""
  return any(one.can_standardize(weight_shape) for one in (standardize_tpu, standardize_rows_tpu))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def standardize(
  dtype: jnp.dtype,
  gradient_dtype: jnp.dtype | None,
  standardization: Standardization,
  filters: RawFilters,
) -> StandardizedFilters:
  """Returns standardized filters, whose gradient comes from their sink.

  Args:
    dtype: dtype of the rows.
    gradient_dtype: dtype of the gradient that the convolution returns, or None for no gradient.
    standardization: see `formulas.inverse_deviation`.
    filters: filters that `can_standardize`.
  """
  are_rows = standardize_rows_tpu.can_standardize(filters.weight.shape)
  rows = (standardize_rows_tpu if are_rows else standardize_tpu).standardize(
    filters.weight,
    filters.gain[None],
    filters.input_scale[None],
    dtype=dtype,
    standardization=standardization,
  )
  return with_gradient_sink(rows, gradient_dtype)


def _standardize_forward(dtype, gradient_dtype, standardization, filters):
  return standardize(dtype, gradient_dtype, standardization, filters), filters


def _standardize_backward(dtype, gradient_dtype, standardization, filters, cotangent):
  del dtype
  check_has_gradient(gradient_dtype)
  gradient = (
    standardize_rows_tpu.gradient
    if standardize_rows_tpu.can_standardize(filters.weight.shape)
    else functools.partial(standardize_tpu.gradient, in_rows=True)
  )
  weight, gain = gradient(
    filters.weight,
    cotangent.gradient_sink,
    filters.gain[None],
    # A constant arrives as a NumPy array.
    jnp.asarray(filters.input_scale)[None],
    standardization=standardization,
  )
  return (RawFilters(weight, gain, None),)


standardize.defvjp(_standardize_forward, _standardize_backward)


class Residuals(NamedTuple):
  """Arrays that the backward pass needs of the forward pass.

  Attributes:
    x: the input, of shape `Problem.input_shape`; if it was a sum, what that has become.
    branch: branch of the sum, or None.
    filters: the filters.
    statistics: statistics of raw filters, or None.
  """

  x: Float[Array, "h a w b n c"]
  branch: Float[Array, "h w n c"] | None
  filters: RawFilters | StandardizedFilters
  statistics: Float[Array, "8 o"] | None


def forward(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  x: Float[Array, "h a w b n c"] | PendingSum,
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " o"],
) -> tuple[Float[Array, "h w q n o"], Float[Array, "n o"] | None, Residuals]:
  """Returns the result, its mean over pixels at the end of a branch, and residuals for `backward`.

  Takes the arguments of `convolve`.
  """
  written = forward_tpu.convolve(
    x,
    filters,
    bias[None],
    blocks=passes.forward,
    activation=activation,
    standardization=standardization,
  )
  branch = None
  if isinstance(x, PendingSum):
    x, branch = written.input, x.branch
  return written.result, written.mean, Residuals(x, branch, filters, written.statistics)


def backward(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  residuals: Residuals,
  cotangent: Float[Array, "h w q n o"],
  *,
  result_scale: Float[Array, "n o"] | None,
  mean_cotangent: Float[Array, "n o"] | None,
  input_cotangent: Float[Array, "h a w b n c"] | None,
  differentiates_input: bool,
) -> tuple[Array | PendingSum | None, RawFilters | StandardizedFilters, Array | None]:
  """Returns the gradients of input, filters and, except at the end of a branch, bias.

  In the gradient of the filters, None stands for what has no derivative. If the input is a sum, its
  gradient is what `PendingSum` says.

  Args:
    passes: blocks of both passes.
    activation: activation of the input, or None.
    standardization: see `formulas.inverse_deviation`.
    residuals: residuals that `forward` returned.
    cotangent: cotangent of the result; `backward_tpu.gradients` says more about this and the
      following arguments.
    result_scale: factor of the result at the end of a branch.
    mean_cotangent: cotangent of the result's mean at the end of a branch.
    input_cotangent: cotangent of the returned input.
    differentiates_input: whether the input's gradient is computed.
  """
  filters = residuals.filters
  gradients = backward_tpu.gradients(
    residuals.x,
    cotangent,
    result_scale,
    mean_cotangent,
    input_cotangent,
    residuals.branch,
    filters,
    residuals.statistics,
    blocks=passes.backward,
    activation=activation,
    differentiates_input=differentiates_input,
  )
  x_gradient = gradients.input
  if residuals.branch is not None:
    x_gradient = x_gradient.reshape(residuals.branch.shape)
    x_gradient = PendingSum(x_gradient, x_gradient, gradients.products, gradients.inputs)
  if isinstance(filters, StandardizedFilters):
    parts = len(gradients.filters)
    total = gradients.filters[0] if parts == 1 else jnp.sum(gradients.filters, axis=0)
    return x_gradient, filters_cotangent(total, filters.gradient_sink), gradients.bias
  weight_gradient, gain_gradient = standardize_tpu.gradient(
    filters.weight,
    gradients.filters,
    filters.gain[None],
    # A constant arrives as a NumPy array.
    jnp.asarray(filters.input_scale)[None],
    in_rows=False,
    standardization=standardization,
  )
  return x_gradient, RawFilters(weight_gradient, gain_gradient, None), gradients.bias


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
  differentiates_input: bool


def _convolve_forward(passes, activation, standardization, x, filters, bias):
  # Nothing uses the gradient of the images, so it is not computed; `perturbed` is False for them.
  static = _Static(isinstance(x, PendingSum) or x.perturbed)
  x, filters, bias = custom_vjp_primal_tree_values((x, filters, bias))
  result, _, residuals = forward(passes, activation, standardization, x, filters, bias)
  returned = residuals.x if passes.forward.problem.returns_input else None
  return (result, returned), (residuals, static)


def _convolve_backward(passes, activation, standardization, residuals, cotangents):
  residuals, static = residuals
  cotangent, input_cotangent = map(_materialized, cotangents)
  return backward(
    passes,
    activation,
    standardization,
    residuals,
    cotangent,
    result_scale=None,
    mean_cotangent=None,
    input_cotangent=input_cotangent,
    differentiates_input=static.differentiates_input,
  )


def _materialized(cotangent):
  if not isinstance(cotangent, SymbolicZero):
    return cotangent
  return jnp.zeros(cotangent.aval.shape, cotangent.aval.dtype)


convolve.defvjp(_convolve_forward, _convolve_backward, symbolic_zeros=True)
