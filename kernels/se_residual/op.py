"""The public op: the last convolution of a residual branch with squeeze-excite and the addition."""

import functools

import jax
from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.scaled_ws_conv.reference import VARIANCE_FLOOR, Activation
from kernels.se_residual import kernel_tpu, reference


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  squeeze_weight: Float[Array, "c s"],
  squeeze_bias: Float[Array, " s"],
  excite_weight: Float[Array, "s c"],
  excite_bias: Float[Array, " c"],
  skip_gain: Float[Array, ""],
  *,
  activation: Activation | None = None,
  input_scale: Float[Array, ""] | None = None,
  keep: Float[Array, " n"] | None = None,
  alpha: float = 0.2,
  implementation: Implementation = "reference",
) -> Float[Array, "h w n c"]:
  """`reference.conv_se_residual`, by TPU kernels where these cover the arguments."""
  if input_scale is not None:
    input_scale = jax.lax.stop_gradient(input_scale)
  static = dict(activation=activation, alpha=alpha)
  return dispatch(
    "conv_se_residual",
    implementation,
    reference=functools.partial(reference.conv_se_residual, **static),
    kernel=functools.partial(
      kernel_tpu.conv_se_residual,
      **static,
      branch_scale=reference.branch_scale,
      variance_floor=VARIANCE_FLOOR,
    ),
    arguments=(
      x,
      weight,
      gain,
      bias,
      input_scale,
      shortcut,
      squeeze_weight,
      squeeze_bias,
      excite_weight,
      excite_bias,
      skip_gain,
      keep,
    ),
  )
