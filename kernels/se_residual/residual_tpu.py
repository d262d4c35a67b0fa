"""The residual addition, and the sums that its derivative needs, as Pallas TPU kernels.

Only a few lanes and columns are computed at a time, so that everything stays in registers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES
from kernels.se_residual.tile import Blocks
from kernels.tpu import divisors, result_like

COLUMNS_MAX = 4
"""Largest number of columns whose loop is unrolled."""


class AddScaledRefs(NamedTuple):
  """The refs of `add_scaled`, with axes [h, w, n, c] or [n, c]."""

  branch_ref: Any  # [h, w, n, c]
  shortcut_ref: Any  # [h, w, n, c]
  scale_ref: Any  # [n, c]
  result_ref: Any  # [h, w, n, c]


class SumsRefs(NamedTuple):
  """The refs of `sums_over_space`, with axes [h, w, n, c] or [n, c]."""

  cotangent_ref: Any  # [h, w, n, c]
  branch_ref: Any  # [h, w, n, c]
  products_ref: Any  # [n, c]
  cotangents_ref: Any  # [n, c]


def add_scaled(
  branch: Float[Array, "h w n c"],
  shortcut: Float[Array, "h w n c"],
  scale: Float[Array, "n c"],
  *,
  blocks: Blocks,
) -> Float[Array, "h w n c"]:
  """Returns shortcut + scale * branch.

  Args:
    branch: the residual branch.
    shortcut: array of the branch's shape and dtype.
    scale: float32 factor of each image and channel.
    blocks: blocks of the forward pass.
  """
  wide, narrow = _specs(blocks)
  written = call(
    _add_scaled_body,
    AddScaledRefs(
      branch_ref=Operand(branch, wide),
      shortcut_ref=Operand(shortcut, wide),
      scale_ref=Operand(scale, narrow),
      result_ref=Result(result_like(branch, branch.shape, branch.dtype), wide),
    ),
    name="add_scaled",
    grid=blocks.grid,
    dimension_semantics=("parallel", "parallel", "arbitrary"),
  )
  return written.result_ref


def sums_over_space(
  cotangent: Float[Array, "h w n c"], branch: Float[Array, "h w n c"], *, blocks: Blocks
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
  """Returns the sums of cotangent * branch (the scale's gradient) and of the cotangent, float32.

  Args:
    cotangent: cotangent of `add_scaled`'s result.
    branch: the residual branch.
    blocks: blocks of the backward pass.
  """
  wide, narrow = _specs(blocks)
  sums = Result(result_like(branch, branch.shape[2:], jnp.float32), narrow)
  written = call(
    _sums_body,
    SumsRefs(
      cotangent_ref=Operand(cotangent, wide),
      branch_ref=Operand(branch, wide),
      products_ref=sums,
      cotangents_ref=sums,
    ),
    name="sums_over_space",
    grid=blocks.grid,
    dimension_semantics=("parallel", "parallel", "arbitrary"),
  )
  return written.products_ref, written.cotangents_ref


def _specs(blocks: Blocks) -> tuple[pl.BlockSpec, pl.BlockSpec]:
  """Returns the block specs of [h, w, n, c] and of [n, c] arrays."""
  return (
    pl.BlockSpec(blocks.wide_shape, lambda image, channel, row: (row, 0, image, channel)),
    pl.BlockSpec(blocks.narrow_shape, lambda image, channel, row: (image, channel)),
  )


def _add_scaled_body(refs: AddScaledRefs):
  @_for_each_row_and_lanes(refs.branch_ref.shape)
  def _(row, lanes):
    def add(column, _):
      at = row, column, *lanes
      scaled = refs.scale_ref[lanes] * refs.branch_ref[at].astype(jnp.float32)
      total = refs.shortcut_ref[at].astype(jnp.float32) + scaled
      refs.result_ref[at] = total.astype(refs.result_ref.dtype)

    _over_columns(refs.branch_ref.shape[1], add, None)


def _sums_body(refs: SumsRefs):
  @pl.when(pl.program_id(2) == 0)
  def _():
    for sums_ref in (refs.products_ref, refs.cotangents_ref):
      sums_ref[...] = jnp.zeros_like(sums_ref)

  @_for_each_row_and_lanes(refs.branch_ref.shape)
  def _(row, lanes):
    def add(column, totals):
      at = row, column, *lanes
      cotangent = refs.cotangent_ref[at].astype(jnp.float32)
      products, cotangents = totals
      product = cotangent * refs.branch_ref[at].astype(jnp.float32)
      return products + product, cotangents + cotangent

    totals = refs.products_ref[lanes], refs.cotangents_ref[lanes]
    totals = _over_columns(refs.branch_ref.shape[1], add, totals)
    refs.products_ref[lanes], refs.cotangents_ref[lanes] = totals


def _for_each_row_and_lanes(shape: tuple[int, ...]) -> Callable[[Callable], None]:
  """Returns a decorator that runs a function for each row and each 128 channels in a block."""
  rows, _, _, channels = shape

  def run(body):
    @pl.loop(0, rows)
    def _(row):
      @pl.loop(0, channels, step=LANES)
      def _(channel):
        body(row, (slice(None), pl.ds(pl.multiple_of(channel, LANES), LANES)))

  return run


def _over_columns(width: int, body: Callable, carry: Any) -> Any:
  """Runs `body` for each column, with some columns unrolled, and returns the carry."""
  columns = max(n for n in divisors(width) if n <= COLUMNS_MAX)

  def unrolled(block, carry):
    for column in range(columns):
      carry = body(block * columns + column, carry)
    return carry

  return jax.lax.fori_loop(0, width // columns, unrolled, carry)
