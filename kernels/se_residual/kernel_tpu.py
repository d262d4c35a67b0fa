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

from kernels.tpu import LANES, cost_estimate, result_like

IMAGES_MULTIPLE = 16
CORES = 2
BLOCK_BYTES_MAX = 3 << 19
"""Three arrays with two blocks each take 9 of VMEM's 16 MiB."""


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
  return _call(_add_scaled_body, "se_residual", [branch, shortcut], scale, sums=False)[0]


def _forward(branch, shortcut, scale):
  return add_scaled(branch, shortcut, scale), (branch, scale)


def _backward(residuals, cotangent):
  branch, scale = residuals
  branch_gradient, scale_gradient = _call(
    _gradients_body, "se_residual_gradients", [cotangent, branch], scale, sums=True
  )
  return branch_gradient, cotangent, scale_gradient


add_scaled.defvjp(_forward, _backward)


def _call(body, name, arrays, scale, *, sums):
  """One array like `arrays`, and, with `sums`, one like `scale`."""
  height, width, images, channels = arrays[0].shape
  # The cores share the images, or the channels where there are too few.
  image_blocks = CORES if images % (CORES * IMAGES_MULTIPLE) == 0 else 1
  channel_blocks = CORES if image_blocks == 1 and channels % (CORES * LANES) == 0 else 1
  images, channels = images // image_blocks, channels // channel_blocks
  row_bytes = width * images * channels * arrays[0].dtype.itemsize
  rows = max(
    n
    for n in range(1, height + 1)
    if height % n == 0 and (n == 1 or n * row_bytes <= BLOCK_BYTES_MAX)
  )
  if row_bytes > 2 * BLOCK_BYTES_MAX:
    raise NotImplementedError("rows that do not fit VMEM")
  wide = pl.BlockSpec(
    (rows, width, images, channels), lambda image, channel, row: (row, 0, image, channel)
  )
  narrow = pl.BlockSpec((images, channels), lambda image, channel, row: (image, channel))

  results = [result_like(arrays[0], x.shape, x.dtype) for x in [arrays[0]] + [scale] * sums]
  return pl.pallas_call(
    body,
    grid=(image_blocks, channel_blocks, height // rows),
    in_specs=[*[wide] * len(arrays), narrow],
    out_specs=[wide] + [narrow] * sums,
    out_shape=results,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=cost_estimate([*arrays, scale], results),
    name=name,
  )(*arrays, scale)


def _add_scaled_body(branch, shortcut, scale, result):
  rows, width = branch.shape[:2]

  @pl.loop(0, rows)
  def _(row):
    for column in range(width):
      at = row, column
      scaled = scale[...] * branch[at].astype(jnp.float32)
      result[at] = (shortcut[at].astype(jnp.float32) + scaled).astype(result.dtype)


def _gradients_body(cotangent, branch, scale, branch_gradient, scale_gradient):
  rows, width = branch.shape[:2]

  @pl.when(pl.program_id(2) == 0)
  def _():
    scale_gradient[...] = jnp.zeros_like(scale_gradient)

  @pl.loop(0, rows)
  def _(row):
    total = scale_gradient[...]
    for column in range(width):
      at = row, column
      gradient = cotangent[at].astype(jnp.float32)
      branch_gradient[at] = (gradient * scale[...]).astype(branch_gradient.dtype)
      total += gradient * branch[at].astype(jnp.float32)
    scale_gradient[...] = total
