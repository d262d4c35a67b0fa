"""The convolution as Pallas TPU kernels, with all derivatives.

`convolve` is the differentiable function. Ops that contain this convolution call `forward` and
`backward` in their own derivative.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from kernels.scaled_ws_conv import backward_tpu, forward_tpu, standardize_tpu
from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.scaled_ws_conv.tile import Passes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def convolve(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  x: Float[Array, "h a w b n c"],
  weight: Float[Array, "taps i o"],
  gain: Float[Array, " o"] | None,
  bias: Float[Array, " o"],
  scale: Float[Array, ""],
) -> tuple[Float[Array, "h w q n o"], Float[Array, "h a w b n c"] | None]:
  """Returns the result, and the input if the problem returns it.

  There is no derivative with respect to the scale.

  Args:
    passes: blocks of both passes.
    activation: activation of the input, or None.
    standardization: see `formulas.inverse_deviation`.
    x: input, of shape `Problem.input_shape`.
    weight: filters, float32.
    gain: scale of each filter, float32; None uses the weights as they are.
    bias: offset of each output channel, float32.
    scale: factor of the activated input, float32.
  """
  result, _, _ = forward(passes, activation, standardization, x, weight, gain, bias, scale)
  return result, x if passes.forward.problem.returns_input else None


def forward(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  x: Float[Array, "h a w b n c"],
  weight: Float[Array, "taps i o"],
  gain: Float[Array, " o"] | None,
  bias: Float[Array, " o"],
  scale: Float[Array, ""],
) -> tuple[Float[Array, "h w q n o"], Float[Array, "n o"] | None, tuple[Any, ...]]:
  """Returns the result, its mean over pixels at the end of a branch, and residuals for `backward`.

  Takes the arguments of `convolve`.
  """
  result, statistics, mean = forward_tpu.convolve(
    x,
    weight,
    None if gain is None else gain[None],
    bias[None],
    scale[None],
    blocks=passes.forward,
    activation=activation,
    standardization=standardization,
  )
  return result, mean, (x, weight, gain, scale, statistics)


def backward(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  residuals: tuple[Any, ...],
  cotangent: Float[Array, "h w q n o"],
  *,
  result_scale: Float[Array, "n o"] | None,
  mean_cotangent: Float[Array, "n o"] | None,
  input_cotangent: Float[Array, "h a w b n c"] | None,
  differentiates_input: bool,
) -> tuple[Array | None, Array, Array | None, Array | None]:
  """Returns the gradients of input, weight, gain and, except at the end of a branch, bias.

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
  x, weight, gain, scale, statistics = residuals
  # A constant arrives as a NumPy array.
  scale = jnp.asarray(scale)
  x_gradient, standardized_gradient, bias_gradient = backward_tpu.gradients(
    x,
    cotangent,
    result_scale,
    mean_cotangent,
    input_cotangent,
    weight,
    statistics,
    scale[None],
    blocks=passes.backward,
    activation=activation,
    differentiates_input=differentiates_input,
  )
  if gain is None:
    weight_gradient, gain_gradient = jnp.sum(standardized_gradient, axis=0) * scale, None
  else:
    weight_gradient, gain_gradient = standardize_tpu.gradient(
      weight, standardized_gradient, gain[None], scale[None], standardization=standardization
    )
  return x_gradient, weight_gradient, gain_gradient, bias_gradient


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
  differentiates_input: bool


def _convolve_forward(passes, activation, standardization, *operands):
  values = [None if operand is None else operand.value for operand in operands]
  result, _, residuals = forward(passes, activation, standardization, *values)
  # Nothing uses the gradient of the images, so it is not computed; `perturbed` is False for them.
  static = _Static(operands[0].perturbed)
  returned = values[0] if passes.forward.problem.returns_input else None
  return (result, returned), (residuals, static)


def _convolve_backward(passes, activation, standardization, residuals, cotangents):
  residuals, static = residuals
  cotangent, input_cotangent = map(_materialized, cotangents)
  gradients = backward(
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
  return *gradients, None


def _materialized(cotangent):
  if not isinstance(cotangent, SymbolicZero):
    return cotangent
  return jnp.zeros(cotangent.aval.shape, cotangent.aval.dtype)


convolve.defvjp(_convolve_forward, _convolve_backward, symbolic_zeros=True)
