"""A branch's last convolution, squeeze-excite and the residual addition as Pallas TPU kernels.

Forward, the convolution sums the squeeze while its results are in registers, and a second kernel
scales them and adds them to the shortcut. Backward, one pass over the cotangent and the branch
makes the sums that the gradients of scale and bias are; the convolution scales the cotangent while
it reads it, so that the branch's gradient is never written. The shortcut's gradient is the
result's. What is left has no space: the two fully connected layers are plain JAX.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.scaled_ws_conv import kernel_tpu as convolution
from kernels.scaled_ws_conv.geometry import Geometry
from kernels.scaled_ws_conv.tile import choose as choose_convolution
from kernels.se_residual.tile import Blocks, choose
from kernels.tpu import LANES, cost_estimate, divisors, result_like

COLUMNS_MAX = 4
"""That are written out one by one."""


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  input_scale: Float[Array, ""] | None,
  shortcut: Float[Array, "h w n c"],
  *gate_and_keep: Float[Array, "..."] | None,
  activation,
  alpha: float,
  branch_scale: Callable[..., Array],
  variance_floor: float,
) -> Float[Array, "h w n c"]:
  """As the reference, whose scale of the branch and constant it is given.

  Raises:
    NotImplementedError: for filters other than 1x1, output channels that do not fill the lanes, a
      shortcut of another dtype, and what `scaled_ws_conv` does not cover.
  """
  convolution.check(x, weight, gain, bias, activation)
  if weight.shape[:2] != (1, 1):
    raise NotImplementedError("filters other than 1x1")
  if weight.shape[-1] % LANES:
    raise NotImplementedError("output channels that do not fill the lanes")
  if shortcut.dtype != x.dtype:
    raise NotImplementedError("a shortcut of another dtype")
  geometry = convolution.geometry_of(
    x.shape,
    weight.shape,
    stride=1,
    groups=1,
    pool=False,
    ends_branch=True,
    itemsize=x.dtype.itemsize,
  )
  for direction in ("forward", "backward"):
    choose_convolution(geometry, direction)
    _choose(geometry, direction)
  images = x.shape[2]
  padding = geometry.images - images
  x, shortcut = (jnp.pad(one, ((0, 0), (0, 0), (0, padding), (0, 0))) for one in (x, shortcut))
  *gate, keep = gate_and_keep
  result = end_branch(
    geometry,
    activation,
    variance_floor,
    functools.partial(branch_scale, alpha=alpha, dtype=x.dtype),
    x.reshape(geometry.input_shape),
    weight[0],
    gain,
    bias,
    jnp.ones((), jnp.float32) if input_scale is None else input_scale.astype(jnp.float32),
    shortcut,
    (*gate, None if keep is None else jnp.pad(keep, (0, padding))),
  )
  return result[:, :, :images]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def end_branch(
  geometry: Geometry,
  activation,
  variance_floor: float,
  branch_scale: Callable[..., Array],
  x: Float[Array, "h 1 w 1 n i"],
  weight: Float[Array, "1 i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  input_scale: Float[Array, ""],
  shortcut: Float[Array, "h w n c"],
  gate_and_keep: tuple[Array | None, ...],
) -> Float[Array, "h w n c"]:
  """`conv_se_residual` of whole tiles of images. There is no derivative by the input's scale."""
  static = geometry, activation, variance_floor, branch_scale
  return _end_branch(*static, x, weight, gain, bias, input_scale, shortcut, gate_and_keep)[0]


def _end_branch(geometry, activation, variance_floor, branch_scale, *operands):
  *convolved, shortcut, gate_and_keep = operands
  branch, mean, residuals = convolution.forward(geometry, activation, variance_floor, *convolved)
  branch = branch[:, :, 0]
  scale, pull_back = jax.vjp(branch_scale, mean, *gate_and_keep)
  result = add_scaled(branch, shortcut, scale, blocks=_choose(geometry, "forward"))
  return result, (residuals, branch, scale, pull_back)


def _backward(geometry, activation, variance_floor, branch_scale, residuals, cotangent):
  del branch_scale
  residuals, branch, scale, pull_back = residuals
  blocks = _choose(geometry, "backward")
  scale_gradient, cotangent_sums = sums_over_space(cotangent, branch, blocks=blocks)
  mean_cotangent, *others = pull_back(scale_gradient)
  *gradients, _ = convolution.backward(
    geometry,
    activation,
    variance_floor,
    residuals,
    cotangent[:, :, None],
    result_scale=scale,
    mean_cotangent=mean_cotangent,
  )
  bias_gradient = jnp.sum(scale * cotangent_sums + mean_cotangent, axis=0)
  return *gradients, bias_gradient, None, cotangent, tuple(others)


end_branch.defvjp(_end_branch, _backward)


def _choose(geometry, direction):
  shape = geometry.height, geometry.width, geometry.images, geometry.out_channels
  return choose(shape, geometry.itemsize, direction)


def add_scaled(
  branch: Float[Array, "h w n c"],
  shortcut: Float[Array, "h w n c"],
  scale: Float[Array, "n c"],
  *,
  blocks: Blocks,
) -> Float[Array, "h w n c"]:
  """shortcut + scale * branch; the scale is float32."""
  result = result_like(branch, branch.shape, branch.dtype)
  (result,) = _call(_add_scaled_body, "add_scaled", [branch, shortcut, scale], [result], blocks)
  return result


def sums_over_space(
  cotangent: Float[Array, "h w n c"], branch: Float[Array, "h w n c"], *, blocks: Blocks
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
  """Of cotangent * branch, the gradient of the scale, and of the cotangent, in float32."""
  results = [result_like(branch, branch.shape[2:], jnp.float32)] * 2
  return _call(_sums_body, "sums_over_space", [cotangent, branch], results, blocks)


def _call(body, name, operands, results, blocks):
  def spec(ndim):
    if ndim == 2:
      return pl.BlockSpec(blocks.narrow_shape, lambda image, channel, row: (image, channel))
    return pl.BlockSpec(blocks.wide_shape, lambda image, channel, row: (row, 0, image, channel))

  return pl.pallas_call(
    body,
    grid=blocks.grid,
    in_specs=[spec(operand.ndim) for operand in operands],
    out_specs=[spec(len(result.shape)) for result in results],
    out_shape=results,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=cost_estimate(operands, results),
    name=name,
  )(*operands)


def _add_scaled_body(branch, shortcut, scale, result):
  @_for_each_row_and_lanes(branch.shape)
  def _(row, lanes):
    def add(column, _):
      at = row, column, *lanes
      scaled = scale[lanes] * branch[at].astype(jnp.float32)
      result[at] = (shortcut[at].astype(jnp.float32) + scaled).astype(result.dtype)

    _over_columns(branch.shape[1], add, None)


def _sums_body(cotangent, branch, products, cotangents):
  @pl.when(pl.program_id(2) == 0)
  def _():
    for sums in (products, cotangents):
      sums[...] = jnp.zeros_like(sums)

  @_for_each_row_and_lanes(branch.shape)
  def _(row, lanes):
    def add(column, totals):
      at = row, column, *lanes
      one = cotangent[at].astype(jnp.float32)
      return totals[0] + one * branch[at].astype(jnp.float32), totals[1] + one

    totals = _over_columns(branch.shape[1], add, (products[lanes], cotangents[lanes]))
    products[lanes], cotangents[lanes] = totals


# Few lanes and columns are worked on at a time, so that everything stays in registers.


def _for_each_row_and_lanes(shape):
  rows, _, _, channels = shape

  def run(body):
    @pl.loop(0, rows)
    def _(row):
      @pl.loop(0, channels, step=LANES)
      def _(channel):
        body(row, (slice(None), pl.ds(pl.multiple_of(channel, LANES), LANES)))

  return run


def _over_columns(width, body, carry):
  """What the body makes of the carry, column by column."""
  columns = max(n for n in divisors(width) if n <= COLUMNS_MAX)

  def some(block, carry):
    for column in range(columns):
      carry = body(block * columns + column, carry)
    return carry

  return jax.lax.fori_loop(0, width // columns, some, carry)
