"""Squeeze-excite with implementation="pallas": what the kernels cover, and how they are called."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.layout import LANES
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters, filter_shape
from kernels.scaled_ws_conv.formulas import Activation, PendingSum, Standardization
from kernels.scaled_ws_conv.pallas import check, raw_filters
from kernels.scaled_ws_conv.problem import problem_of
from kernels.scaled_ws_conv.tile import choose_both
from kernels.scaled_ws_conv.vjp import convolve
from kernels.se_residual import vjp
from kernels.se_residual.formulas import Gate
from kernels.se_residual.problem import Problem
from kernels.se_residual.tile import choose
from kernels.se_residual.vjp import SumBlocks
from kernels.tpu import IMAGES_MULTIPLE


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
  branch, scale, sums_sink = _conv_se(
    x,
    weight.shape,
    raw_filters(weight, gain, input_scale),
    bias,
    gate,
    skip_gain,
    keep,
    activation=activation,
    alpha=alpha,
    standardization=standardization,
  )
  return add_up(PendingSum(branch, shortcut, scale, sums_sink))


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
  branch, scale, sums_sink = standardized_conv_se(
    x, filters, bias, gate, skip_gain, keep, activation=activation, alpha=alpha
  )
  return add_up(PendingSum(branch, shortcut, scale, sums_sink))


def standardized_conv_se(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
) -> tuple[Float[Array, "h w n c"], Float[Array, "n c"], Float[Array, "n c"]]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for what `standardized_conv_se_residual` does not cover.
  """
  check(x, (bias,), activation)
  if filters.rows.dtype != x.dtype:
    raise NotImplementedError("filters in another dtype than the activations")
  return _conv_se(
    x,
    filter_shape(filters, x, bias, groups=1),
    filters,
    bias,
    gate,
    skip_gain,
    keep,
    activation=activation,
    alpha=alpha,
    standardization="released",
  )


def add_up(pending: PendingSum) -> Float[Array, "h w n c"]:
  """Computes what the reference computes, from the same argument.

  Raises:
    NotImplementedError: for channels that do not fill the lanes, activations other than bfloat16
      and float32, and a shortcut of another dtype.
  """
  height, width, images, channels = pending.branch.shape
  dtype = pending.branch.dtype
  if channels % LANES:
    raise NotImplementedError("channels that do not fill the lanes")
  if dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError("activations other than bfloat16 and float32")
  if pending.shortcut.dtype != dtype:
    raise NotImplementedError("a shortcut of another dtype")
  padding = -images % IMAGES_MULTIPLE
  problem = Problem(
    height=height,
    width=width,
    images=images + padding,
    channels=channels,
    itemsize=dtype.itemsize,
  )
  blocks = SumBlocks(choose(problem, "forward"), choose(problem, "backward"))
  return vjp.add_up(blocks, _padded(pending, padding))[:, :, :images]


def standardized_convolution_of_sum(
  pending: PendingSum,
  filters: StandardizedFilters,
  bias: Float[Array, " o"],
  *,
  activation: Activation | None,
  returns_input: bool,
) -> tuple[Float[Array, "h w n o"], Float[Array, "h w n c"] | None]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for what `standardized_convolution` does not cover, and where not all
      filters fit VMEM.
  """
  x = pending.branch
  check(x, (bias,), activation)
  if filters.rows.dtype != x.dtype:
    raise NotImplementedError("filters in another dtype than the activations")
  if pending.shortcut.dtype != x.dtype:
    raise NotImplementedError("a shortcut of another dtype")
  passes = choose_both(
    problem_of(
      x.shape,
      filter_shape(filters, x, bias, groups=1),
      stride=1,
      groups=1,
      pool=False,
      returns_input=returns_input,
      itemsize=x.dtype.itemsize,
      standardized=True,
      sums_input=True,
    )
  )
  images = x.shape[2]
  padded = _padded(pending, passes.forward.problem.images - images)
  result, total = convolve(passes, activation, "released", padded, filters, bias)
  if returns_input:
    total = total.reshape(padded.branch.shape)[:, :, :images]
  return result[:, :, 0, :images], total


def _padded(pending: PendingSum, padding: int) -> PendingSum:
  """Returns a sum of more images, which are zeros."""
  return PendingSum(
    *(
      jnp.pad(array, [(0, padding if axis == array.ndim - 2 else 0) for axis in range(array.ndim)])
      for array in pending
    )
  )


def _conv_se(
  x: Float[Array, "h w n i"],
  weight_shape: tuple[int, ...],
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, " c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
  standardization: Standardization,
) -> tuple[Float[Array, "h w n c"], Float[Array, "n c"], Float[Array, "n c"]]:
  """Pads the batch and calls the kernels."""
  if weight_shape[:2] != (1, 1):
    raise NotImplementedError("filters other than 1x1")
  if weight_shape[-1] % LANES:
    raise NotImplementedError("output channels that do not fill the lanes")
  problem = problem_of(
    x.shape,
    weight_shape,
    stride=1,
    groups=1,
    pool=False,
    ends_branch=True,
    itemsize=x.dtype.itemsize,
    standardized=isinstance(filters, StandardizedFilters),
  )
  images = x.shape[2]
  padding = problem.images - images
  branch, scale, sums_sink = vjp.end_branch(
    choose_both(problem),
    activation,
    standardization,
    alpha,
    jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))).reshape(problem.input_shape),
    filters,
    bias,
    gate,
    skip_gain,
    None if keep is None else jnp.pad(keep, (0, padding)),
  )
  return branch[:, :, :images], scale[:images], sums_sink[:images]
