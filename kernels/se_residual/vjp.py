"""A branch's last convolution, squeeze-excite and the addition as Pallas kernels, with derivatives.

`end_branch` is the convolution and squeeze-excite. In the forward pass, the convolution sums up the
squeeze while its results are in registers. In the backward pass it scales the cotangent while
reading it, so that the branch's gradient is never written. The two fully connected layers have no
spatial axes; a kernel computes the gradients of those weights that are bfloat16.

What `end_branch` returns becomes a `PendingSum`. The next block's first convolution adds it up, or
`add_up` does: one kernel scales the branch and adds the shortcut, and in the backward pass another
one reads cotangent and branch and computes the sums from which the gradients of scale and bias
follow.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.fully_connected.vjp import product
from kernels.scaled_ws_conv import vjp as convolution
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters
from kernels.scaled_ws_conv.formulas import Activation, PendingSum, Standardization
from kernels.scaled_ws_conv.tile import Passes
from kernels.se_residual.formulas import Gate, branch_scale
from kernels.se_residual.residual_tpu import add_scaled, sums_over_space
from kernels.se_residual.tile import Blocks


class SumBlocks(NamedTuple):
  """The blocks of the kernels that add up.

  Attributes:
    addition: blocks of `add_scaled`.
    sums: blocks of `sums_over_space`.
  """

  addition: Blocks
  sums: Blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def end_branch(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  alpha: float,
  x: Float[Array, "h 1 w 1 n i"],
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
) -> tuple[Float[Array, "h w n c"], Float[Array, "n c"], Float[Array, "n c"]]:
  """Returns branch, scale and sink of a `PendingSum`, for whole tiles of images.

  The arguments after the blocks of the convolution's passes are those of
  `reference.conv_se_residual`. Filters are differentiated as in `scaled_ws_conv.vjp.convolve`, and
  what is returned as `PendingSum` says.
  """
  operands = x, filters, bias, gate, skip_gain, keep
  return _end_branch_forward(passes, activation, standardization, alpha, *operands)[0]


def _end_branch_forward(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  alpha: float,
  x,
  filters,
  bias,
  gate,
  skip_gain,
  keep,
):
  branch, mean, residuals = convolution.forward(
    passes, activation, standardization, x, filters, bias
  )
  branch = branch[:, :, 0]
  scale_of = functools.partial(branch_scale, alpha=alpha, dtype=x.dtype, product=product)
  scale, pull_back = jax.vjp(scale_of, mean, gate, skip_gain, keep)
  return (branch, scale, jnp.zeros_like(scale)), (residuals, scale, pull_back)


def _end_branch_backward(
  passes: Passes,
  activation: Activation | None,
  standardization: Standardization,
  alpha: float,
  residuals,
  cotangents,
):
  del alpha
  residuals, scale, pull_back = residuals
  cotangent, scale_gradient, cotangent_sums = cotangents
  mean_cotangent, gate, skip_gain, keep = pull_back(scale_gradient)
  x, filters, _ = convolution.backward(
    passes,
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
  return x, filters, bias, gate, skip_gain, keep


end_branch.defvjp(_end_branch_forward, _end_branch_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def add_up(blocks: SumBlocks, pending: PendingSum) -> Float[Array, "h w n c"]:
  """Returns the sum, for whole tiles of images."""
  branch, shortcut, scale, _ = pending
  return add_scaled(branch, shortcut, scale, blocks=blocks.addition)


def _add_up_forward(blocks: SumBlocks, pending: PendingSum):
  return add_up(blocks, pending), pending.branch


def _add_up_backward(blocks: SumBlocks, branch, cotangent):
  sums = sums_over_space(cotangent, branch, blocks=blocks.sums)
  return (PendingSum(cotangent, cotangent, *sums),)


add_up.defvjp(_add_up_forward, _add_up_backward)
