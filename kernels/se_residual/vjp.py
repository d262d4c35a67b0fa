"""A branch's last convolution, squeeze-excite and the addition as Pallas kernels, with derivatives.

In the forward pass, the convolution sums up the squeeze while its results are in registers, and a
second kernel scales the results and adds them to the shortcut. In the backward pass, one kernel
reads cotangent and branch once and computes the sums from which the gradients of scale and bias
follow. The convolution scales the cotangent while reading it, so that the branch's gradient is
never written. The shortcut's gradient is the result's cotangent. The two fully connected layers in
between have no spatial axes and are plain JAX.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.scaled_ws_conv import vjp as convolution
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters
from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.scaled_ws_conv.tile import Passes
from kernels.se_residual.formulas import Gate, branch_scale
from kernels.se_residual.residual_tpu import add_scaled, sums_over_space
from kernels.se_residual.tile import Blocks


class AllBlocks(NamedTuple):
  """The blocks of all kernels.

  Attributes:
    convolution: blocks of the convolution's passes.
    addition: blocks of `add_scaled`.
    sums: blocks of `sums_over_space`.
  """

  convolution: Passes
  addition: Blocks
  sums: Blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def end_branch(
  blocks: AllBlocks,
  activation: Activation | None,
  standardization: Standardization,
  alpha: float,
  x: Float[Array, "h 1 w 1 n i"],
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
) -> Float[Array, "h w n c"]:
  """Computes `reference.conv_se_residual` for whole tiles of images.

  Filters are differentiated as in `scaled_ws_conv.vjp.convolve`.
  """
  operands = x, filters, bias, shortcut, gate, skip_gain, keep
  return _forward(blocks, activation, standardization, alpha, *operands)[0]


def _forward(
  blocks: AllBlocks,
  activation: Activation | None,
  standardization: Standardization,
  alpha: float,
  x,
  filters,
  bias,
  shortcut,
  gate,
  skip_gain,
  keep,
):
  branch, mean, residuals = convolution.forward(
    blocks.convolution, activation, standardization, x, filters, bias
  )
  branch = branch[:, :, 0]
  scale_of = functools.partial(branch_scale, alpha=alpha, dtype=x.dtype)
  scale, pull_back = jax.vjp(scale_of, mean, gate, skip_gain, keep)
  result = add_scaled(branch, shortcut, scale, blocks=blocks.addition)
  return result, (residuals, branch, scale, pull_back)


def _backward(
  blocks: AllBlocks,
  activation: Activation | None,
  standardization: Standardization,
  alpha: float,
  residuals,
  cotangent,
):
  del alpha
  residuals, branch, scale, pull_back = residuals
  scale_gradient, cotangent_sums = sums_over_space(cotangent, branch, blocks=blocks.sums)
  mean_cotangent, gate, skip_gain, keep = pull_back(scale_gradient)
  x, filters, _ = convolution.backward(
    blocks.convolution,
    activation,
    standardization,
    residuals,
    cotangent[:, :, None],
    result_scale=scale,
    mean_cotangent=mean_cotangent,
    input_cotangent=None,
    differentiates_input=True,
  )
  bias = jnp.sum(scale * cotangent_sums + mean_cotangent, axis=0)
  return x, filters, bias, cotangent, gate, skip_gain, keep


end_branch.defvjp(_forward, _backward)
