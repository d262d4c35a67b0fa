"""Squeeze-excite and the residual addition as Pallas TPU kernels: one pass over HBM each way.

Forward, the branch is scaled and added to the shortcut. Backward, one pass makes the branch's
gradient and the sum over space that is the scale's; the shortcut's gradient is the result's. What
is left has no space: the two fully connected layers are plain JAX.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.se_residual.tile import Blocks, choose
from kernels.tpu import IMAGES_MULTIPLE, LANES, cost_estimate, divisors, result_like

COLUMNS_MAX = 4
"""That are written out one by one."""


def se_residual(
  branch: Float[Array, "h w n c"],
  mean: Float[Array, "n c"],
  shortcut: Float[Array, "h w n c"],
  *gate_and_keep: Float[Array, "..."] | None,
  branch_scale: Callable[..., Array],
  alpha: float,
) -> Float[Array, "h w n c"]:
  """As the reference, whose scale of the branch it is given.

  Raises:
    NotImplementedError: for channels that do not fill the lanes, and dtypes other than bfloat16 and
      float32.
  """
  if branch.dtype not in (jnp.bfloat16, jnp.float32) or shortcut.dtype != branch.dtype:
    raise NotImplementedError("activations other than bfloat16 and float32")
  if branch.shape[-1] % LANES:
    raise NotImplementedError("channels that do not fill the lanes")
  scale = branch_scale(mean, *gate_and_keep, alpha=alpha, dtype=branch.dtype)
  images = branch.shape[2]
  padding = -images % IMAGES_MULTIPLE
  branch, shortcut = (
    jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in (branch, shortcut)
  )
  return add_scaled(branch, shortcut, jnp.pad(scale, ((0, padding), (0, 0))))[:, :, :images]


@jax.custom_vjp
def add_scaled(
  branch: Float[Array, "h w n c"], shortcut: Float[Array, "h w n c"], scale: Float[Array, "n c"]
) -> Float[Array, "h w n c"]:
  """shortcut + scale * branch."""
  return forward(branch, shortcut, scale, blocks=_choose(branch, "forward"))


def _forward(branch, shortcut, scale):
  return add_scaled(branch, shortcut, scale), (branch, scale)


def _backward(residuals, cotangent):
  branch, scale = residuals
  branch_gradient, scale_gradient = gradients(
    cotangent, branch, scale, blocks=_choose(branch, "backward")
  )
  return branch_gradient, cotangent, scale_gradient


add_scaled.defvjp(_forward, _backward)


def _choose(branch, direction):
  return choose(branch.shape, branch.dtype.itemsize, direction)


def forward(
  branch: Float[Array, "h w n c"],
  shortcut: Float[Array, "h w n c"],
  scale: Float[Array, "n c"],
  *,
  blocks: Blocks,
) -> Float[Array, "h w n c"]:
  """shortcut + scale * branch."""
  (result,) = _call(_add_scaled_body, "se_residual", [branch, shortcut], scale, blocks, sums=False)
  return result


def gradients(
  cotangent: Float[Array, "h w n c"],
  branch: Float[Array, "h w n c"],
  scale: Float[Array, "n c"],
  *,
  blocks: Blocks,
) -> tuple[Float[Array, "h w n c"], Float[Array, "n c"]]:
  """Of the branch, and of the scale."""
  name = "se_residual_gradients"
  return _call(_gradients_body, name, [cotangent, branch], scale, blocks, sums=True)


def _call(body, name, arrays, scale, blocks, *, sums):
  """One array like `arrays`, and, with `sums`, one like `scale`."""
  wide = pl.BlockSpec(blocks.wide_shape, lambda image, channel, row: (row, 0, image, channel))
  narrow = pl.BlockSpec(blocks.narrow_shape, lambda image, channel, row: (image, channel))
  results = [result_like(arrays[0], x.shape, x.dtype) for x in [arrays[0]] + [scale] * sums]
  return pl.pallas_call(
    body,
    grid=blocks.grid,
    in_specs=[*[wide] * len(arrays), narrow],
    out_specs=[wide] + [narrow] * sums,
    out_shape=results,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=cost_estimate([*arrays, scale], results),
    name=name,
  )(*arrays, scale)


def _add_scaled_body(branch, shortcut, scale, result):
  @_for_each_row_and_lanes(branch.shape)
  def _(row, lanes):
    def add(column, _):
      at = row, column, *lanes
      scaled = scale[lanes] * branch[at].astype(jnp.float32)
      result[at] = (shortcut[at].astype(jnp.float32) + scaled).astype(result.dtype)

    _over_columns(branch.shape[1], add, None)


def _gradients_body(cotangent, branch, scale, branch_gradient, scale_gradient):
  @pl.when(pl.program_id(2) == 0)
  def _():
    scale_gradient[...] = jnp.zeros_like(scale_gradient)

  @_for_each_row_and_lanes(branch.shape)
  def _(row, lanes):
    def add(column, total):
      at = row, column, *lanes
      gradient = cotangent[at].astype(jnp.float32)
      branch_gradient[at] = (gradient * scale[lanes]).astype(branch_gradient.dtype)
      return total + gradient * branch[at].astype(jnp.float32)

    scale_gradient[lanes] = _over_columns(branch.shape[1], add, scale_gradient[lanes])


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
