"""Squeeze-excite with implementation="pallas": what the kernels cover, and how they are called."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.layout import LANES
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters, filter_shape
from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.scaled_ws_conv.pallas import check, raw_filters
from kernels.scaled_ws_conv.problem import problem_of
from kernels.scaled_ws_conv.tile import choose_both
from kernels.se_residual.formulas import Gate
from kernels.se_residual.problem import Problem
from kernels.se_residual.tile import choose
from kernels.se_residual.vjp import AllBlocks, end_branch


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
  check(x, (weight, gain, bias), activation)
  return _conv_se_residual(
    x,
    weight.shape,
    raw_filters(weight, gain, input_scale),
    bias,
    shortcut,
    gate,
    skip_gain,
    keep,
    activation=activation,
    alpha=alpha,
    standardization=standardization,
  )


def standardized_conv_se_residual(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
) -> Float[Array, "h w n c"]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for what `conv_se_residual` does not cover, and filters in another dtype
      than the activations.
  """
  check(x, (bias,), activation)
  if filters.rows.dtype != x.dtype:
    raise NotImplementedError("filters in another dtype than the activations")
  return _conv_se_residual(
    x,
    filter_shape(filters, x, bias, groups=1),
    filters,
    bias,
    shortcut,
    gate,
    skip_gain,
    keep,
    activation=activation,
    alpha=alpha,
    standardization="released",
  )


def _conv_se_residual(
  x: Float[Array, "h w n i"],
  weight_shape: tuple[int, ...],
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
  standardization: Standardization,
) -> Float[Array, "h w n c"]:
  """Pads the batch and calls the kernels."""
  if weight_shape[:2] != (1, 1):
    raise NotImplementedError("filters other than 1x1")
  if weight_shape[-1] % LANES:
    raise NotImplementedError("output channels that do not fill the lanes")
  if shortcut.dtype != x.dtype:
    raise NotImplementedError("a shortcut of another dtype")
  convolution = problem_of(
    x.shape,
    weight_shape,
    stride=1,
    groups=1,
    pool=False,
    ends_branch=True,
    itemsize=x.dtype.itemsize,
    standardized=isinstance(filters, StandardizedFilters),
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
    filters,
    bias,
    shortcut,
    gate,
    skip_gain,
    None if keep is None else jnp.pad(keep, (0, padding)),
  )
  return result[:, :, :images]
