"""Squeeze-excite with implementation="pallas": what the kernels cover, and how they are called."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.scaled_ws_conv.pallas import check
from kernels.scaled_ws_conv.problem import problem_of
from kernels.scaled_ws_conv.tile import choose_both
from kernels.se_residual.formulas import Gate
from kernels.se_residual.problem import Problem
from kernels.se_residual.tile import choose
from kernels.se_residual.vjp import AllBlocks, end_branch
from kernels.tpu import LANES


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  input_scale: Float[Array, ""] | None,
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
  standardization: Standardization,
) -> Float[Array, "h w n c"]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for filters other than 1x1, output channels that do not fill the lanes, a
      shortcut of another dtype, and what `scaled_ws_convolution` does not cover.
  """
  check(x, weight, gain, bias, activation)
  if weight.shape[:2] != (1, 1):
    raise NotImplementedError("filters other than 1x1")
  if weight.shape[-1] % LANES:
    raise NotImplementedError("output channels that do not fill the lanes")
  if shortcut.dtype != x.dtype:
    raise NotImplementedError("a shortcut of another dtype")
  convolution = problem_of(
    x.shape,
    weight.shape,
    stride=1,
    groups=1,
    pool=False,
    ends_branch=True,
    itemsize=x.dtype.itemsize,
  )
  residual = Problem(
    height=convolution.height,
    width=convolution.width,
    images=convolution.images,
    channels=convolution.out_channels,
    itemsize=convolution.itemsize,
  )
  blocks = AllBlocks(
    convolution=choose_both(convolution),
    addition=choose(residual, "forward"),
    sums=choose(residual, "backward"),
  )
  images = x.shape[2]
  padding = convolution.images - images
  x, shortcut = (jnp.pad(array, ((0, 0), (0, 0), (0, padding), (0, 0))) for array in (x, shortcut))
  result = end_branch(
    blocks,
    activation,
    standardization,
    alpha,
    x.reshape(convolution.input_shape),
    weight[0],
    gain,
    bias,
    shortcut,
    gate,
    skip_gain,
    jnp.ones((), jnp.float32) if input_scale is None else input_scale.astype(jnp.float32),
    None if keep is None else jnp.pad(keep, (0, padding)),
  )
  return result[:, :, :images]
