"""The public op: a branch's last convolution, squeeze-excite and the residual addition."""

import functools

import jax
from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.scaled_ws_conv.filters import StandardizedFilters
from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.se_residual import pallas, reference
from kernels.se_residual.formulas import Gate


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  input_scale: Float[Array, ""] | None = None,
  keep: Float[Array, " n"] | None = None,
  *,
  activation: Activation | None = None,
  alpha: float = 0.2,
  standardization: Standardization = "released",
  implementation: Implementation = "reference",
) -> Float[Array, "h w n c"]:
  """Returns shortcut + alpha * skip_gain * keep * gate * branch, with branch = conv(activation(x)).

  This is `reference.conv_se_residual`, with TPU kernels where they cover the arguments. The gate is
  computed from the branch's mean over space.

  Args:
    x: input of the branch's last convolution, [height, width, images, input channels], in the
      compute dtype.
    weight: filters, [kernel height, kernel width, input channels, channels], float32.
    gain: scale of each filter, [channels], float32.
    bias: offset of each channel, [channels], float32.
    shortcut: [height, width, images, channels], in the dtype of `x`.
    gate: weights of squeeze-excite, float32.
    skip_gain: learned scale of the branch, a float32 scalar.
    input_scale: factor of the activated input, a float32 scalar without a derivative; None is 1.
    keep: mask of stochastic depth, [images], 0 or 1; None keeps all.
    activation: activation of `x`, or None.
    alpha: weight of the branch, 0.2 in the papers.
    standardization: formula of weight standardization (`scaled_ws_conv.formulas.Standardization`).
    implementation: "reference" or "pallas".

  Returns:
    The sum, of the shape and dtype of `shortcut`.
  """
  if input_scale is not None:
    input_scale = jax.lax.stop_gradient(input_scale)
  static = dict(activation=activation, alpha=alpha, standardization=standardization)
  return dispatch(
    "conv_se_residual",
    implementation,
    reference=functools.partial(reference.conv_se_residual, **static),
    kernel=functools.partial(pallas.conv_se_residual, **static),
    arguments=(x, weight, gain, bias, shortcut, gate, skip_gain, input_scale, keep),
  )


def standardized_conv_se_residual(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None = None,
  *,
  activation: Activation | None = None,
  alpha: float = 0.2,
  implementation: Implementation = "reference",
) -> Float[Array, "h w n c"]:
  """Computes `conv_se_residual` from standardized filters.

  Args:
    x: see `conv_se_residual`.
    filters: filters from `kernels.standardize_filters`, in the dtype of `x`; their gradient is that
      of their `gradient_sink`.
    bias: see `conv_se_residual`, as for all further arguments.
    shortcut: [height, width, images, channels], in the dtype of `x`.
    gate: weights of squeeze-excite, float32.
    skip_gain: learned scale of the branch, a float32 scalar.
    keep: mask of stochastic depth, [images], 0 or 1; None keeps all.
    activation: activation of `x`, or None.
    alpha: weight of the branch, 0.2 in the papers.
    implementation: "reference" or "pallas".

  Returns:
    The sum, of the shape and dtype of `shortcut`.
  """
  static = dict(activation=activation, alpha=alpha)
  return dispatch(
    "standardized_conv_se_residual",
    implementation,
    reference=functools.partial(reference.standardized_conv_se_residual, **static),
    kernel=functools.partial(pallas.standardized_conv_se_residual, **static),
    arguments=(x, filters, bias, shortcut, gate, skip_gain, keep),
  )
