"""The convolution's forward pass as a Pallas TPU kernel.

Each step of the grid standardizes raw weights in VMEM if they differ from those of the previous
step, writes the activated input into a scratch buffer with a border of zeros, and adds up one
matrix product for each tap of the filter. A packed kernel (`packing`) keeps the activated rows for
the next step instead, and multiplies by squares of weights that it makes once. All loops are
unrolled, so that the compiler can fill gaps in the matrix units' schedule with the activation's
arithmetic.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES, SUBLANES
from kernels.scaled_ws_conv import packed_window
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters
from kernels.scaled_ws_conv.formulas import (
  Activation,
  PendingSum,
  Standardization,
  filter_statistics,
)
from kernels.scaled_ws_conv.problem import lane_tiles
from kernels.scaled_ws_conv.standardize_tpu import write_standardized
from kernels.scaled_ws_conv.tile import Blocks
from kernels.tpu import result_like


class Refs(NamedTuple):
  """The kernel's refs; None where absent.

  Axes: h and w count rows and columns of the result, a and b the input's row and column phases, q
  the results of a pixel, n images, i and o input and output channels, k and j tiles of 128 of
  these, t the filter's taps. The blocks with the rows above and below have size 1 along h and a. If
  packed, w counts pairs of columns, and b and q the two of a pair.
  """

  input_scale_ref: Any  # [1], in SMEM, of raw filters
  x_ref: Any  # [h, a, w, b, n, i]; the shortcut of a sum
  branch_ref: Any  # [h, a, w, b, n, i], of a sum
  scale_ref: Any  # [n, i], of a sum
  row_above_ref: Any  # [1, 1, w, b, n, i]
  row_below_ref: Any  # [1, 1, w, b, n, i]
  weight_ref: Any  # [t, i, o], of raw filters
  bias_ref: Any  # [1, o]
  gain_ref: Any  # [1, o], of raw filters
  result_ref: Any  # [h, w, q, n, o]
  statistics_ref: Any  # [8, o], of raw filters: mean and scale of each in the first two rows
  mean_ref: Any  # [n, o], at the end of a branch
  sum_ref: Any  # [h, a, w, b, n, i], of a sum
  activated_ref: Any  # scratch [k, h + border, a, w + border, b, n, 128], or the packed window
  standardized_ref: Any  # [t, k, o, 128]; scratch [t, k, j, 128, 128] for raw filters
  squares_ref: Any  # scratch [products, 128, 128] if packed


class Written(NamedTuple):
  """Arrays that the kernel has written; None where the problem does not ask for one.

  Attributes:
    result: the convolution's result.
    statistics: mean and scale of each raw filter in the first two rows.
    mean: mean of each image's results, at the end of a branch.
    input: the sum that arrived as a `PendingSum`.
  """

  result: Float[Array, "h w q n o"]
  statistics: Float[Array, "8 o"] | None
  mean: Float[Array, "n o"] | None
  input: Float[Array, "h a w b n i"] | None


# Under jit, equal calls are traced only once: the body is long.
@functools.partial(jax.jit, static_argnames=("blocks", "activation", "standardization"))
def convolve(
  x: Float[Array, "h a w b n i"] | PendingSum,
  filters: RawFilters | StandardizedFilters,
  bias: Float[Array, "1 o"],
  *,
  blocks: Blocks,
  activation: Activation | None,
  standardization: Standardization,
) -> Written:
  """Returns the result, and what else the problem asks for.

  Args:
    x: input, of shape `Problem.input_shape`, or a sum if the problem says so.
    filters: filters of the kind that the problem names.
    bias: offset of each output channel, float32.
    blocks: blocks of the forward pass.
    activation: activation of the input, or None.
    standardization: see `formulas.inverse_deviation`; used for raw filters only.
  """
  problem, tile = blocks.problem, blocks.tile
  pending = None
  if problem.sums_input:
    pending, x = x, x.shortcut.reshape(problem.input_shape)
  x = x.reshape(*x.shape[:2], *blocks.input_columns, *x.shape[4:])

  def input_spec(shape, row_of=lambda row: row) -> pl.BlockSpec:
    def at(*place):
      channel, images, row = blocks.at(*place)
      return row_of(blocks.arriving(row)), 0, 0, 0, images, channel if problem.groups > 1 else 0

    return pl.BlockSpec(shape, at)

  def parameter(array) -> Operand:
    *leading, _ = array.shape

    def at(*place):
      return *(0 for _ in leading), blocks.at(*place)[0]

    return Operand(array, pl.BlockSpec((*leading, tile.channels), at))

  def result_at(*place):
    channel, images, row = blocks.at(*place)
    return blocks.finished(row), 0, 0, images, channel

  def statistics_at(core, channel, position):
    # Cores that compute the same channels write one copy each, and the copies are equal.
    copy = 0 if tile.split_channels else core
    return copy, 0, blocks.at(core, channel, position)[0]

  def mean_at(*place):
    channel, images, _ = blocks.at(*place)
    return images, channel

  def scale_at(*place):
    return blocks.at(*place)[1], 0

  halo = blocks.input_halo_shape
  above = input_spec(halo, lambda row: jnp.maximum(row * tile.rows - 1, 0))
  below = input_spec(halo, lambda row: jnp.minimum((row + 1) * tile.rows, problem.height - 1))
  whole = input_spec(blocks.input_shape)
  result_shape = problem.height, *blocks.result_columns, problem.images, problem.out_channels
  raw = None if problem.standardized else filters
  rows = pl.BlockSpec(blocks.rows_shape, lambda *place: (0, 0, blocks.at(*place)[0], 0))

  written = call(
    functools.partial(_packed_body, blocks=blocks, activation=activation)
    if tile.packed
    else functools.partial(
      _body, blocks=blocks, activation=activation, standardization=standardization
    ),
    Refs(
      input_scale_ref=raw and Operand(raw.input_scale[None], pl.BlockSpec(memory_space=pltpu.SMEM)),
      x_ref=Operand(x, whole),
      branch_ref=pending and Operand(pending.branch.reshape(x.shape), whole),
      scale_ref=pending
      and Operand(pending.scale, pl.BlockSpec(blocks.input_image_shape, scale_at)),
      row_above_ref=Operand(x, above) if blocks.has_neighbors and problem.before else None,
      row_below_ref=Operand(x, below) if blocks.has_neighbors and problem.after else None,
      weight_ref=raw and parameter(raw.weight),
      bias_ref=parameter(bias),
      gain_ref=raw and parameter(raw.gain[None]),
      result_ref=Result(
        result_like(x, result_shape, x.dtype),
        pl.BlockSpec(blocks.result_shape, result_at),
      ),
      statistics_ref=raw
      and Result(
        result_like(x, (blocks.parts, SUBLANES, problem.out_channels), jnp.float32),
        pl.BlockSpec((None, SUBLANES, tile.channels), statistics_at),
      ),
      mean_ref=Result(
        result_like(x, (problem.images, problem.out_channels), jnp.float32),
        pl.BlockSpec(blocks.image_shape, mean_at),
      )
      if problem.ends_branch
      else None,
      sum_ref=pending and Result(result_like(x, x.shape, x.dtype), whole),
      activated_ref=pltpu.VMEM(blocks.activated_shape, x.dtype),
      standardized_ref=pltpu.VMEM(blocks.squares_shape, x.dtype)
      if raw
      else Operand(filters.rows, rows),
      squares_ref=pltpu.VMEM(blocks.packed_squares_shape, x.dtype) if tile.packed else None,
    ),
    name="scaled_ws_conv",
    grid=blocks.grid,
    dimension_semantics=("parallel", "arbitrary", "arbitrary"),
    macs=problem.macs,
    transcendentals=x.size if activation else 0,
  )
  result = written.result_ref
  result = result.reshape(problem.height, problem.width, problem.outputs, *result.shape[3:])
  return Written(result, raw and written.statistics_ref[0], written.mean_ref, written.sum_ref)


def _body(
  refs: Refs, *, blocks: Blocks, activation: Activation | None, standardization: Standardization
):
  """Computes a block of the result.

  result[h, w] = bias + sum of activated[h + down, w + right] @ standardized[t] over the taps t
  """
  problem, tile = blocks.problem, blocks.tile
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]

  @pl.when(place[2] == 0)
  def _():
    if not problem.standardized:
      _standardize(refs, standardization)
    for border in _borders(blocks):
      refs.activated_ref[border] = jnp.zeros_like(refs.activated_ref[border])

  if problem.ends_branch:
    # The row blocks of an image come one after another, so the first of them starts the sum.
    @pl.when(row_block == 0)
    def _():
      refs.mean_ref[...] = jnp.zeros_like(refs.mean_ref)

  if problem.sums_input:
    _add_up_and_activate(refs, blocks, activation)
  else:
    _activate(refs, blocks, activation, row_block)

  for row, column, output in itertools.product(
    range(tile.rows), range(0, problem.width, tile.columns), range(problem.outputs)
  ):
    columns = slice(column, column + tile.columns)
    for pair in _pairs(list(enumerate(lane_tiles(tile.channels)))):
      values = []
      for j, lanes in pair:
        total = refs.bias_ref[:, lanes]
        for product in _products(refs, blocks, row, columns, output, j, lanes):
          total += product
        total = total.reshape(tile.columns, tile.images, -1)
        if problem.ends_branch:
          pixels = problem.height * problem.width
          refs.mean_ref[:, lanes] += jnp.sum(total, axis=0) * (1 / pixels)
        values.append(total.astype(refs.result_ref.dtype))
      stored = slice(pair[0][1].start, pair[-1][1].stop)
      refs.result_ref[row, columns, output, :, stored] = jnp.concatenate(values, axis=-1)


def _packed_body(refs: Refs, *, blocks: Blocks, activation: Activation | None):
  """Activates a block of rows, and computes the block of the result above it."""
  tile = blocks.tile
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]
  window_ref = refs.activated_ref

  @pl.when(place[2] == 0)
  def _():
    packed_window.write_squares(refs.standardized_ref, refs.squares_ref, blocks)

  def activate():
    is_padding = row_block == blocks.row_blocks
    for row, column in itertools.product(range(tile.rows), range(2)):
      values = jnp.where(is_padding, 0.0, _activated(activation, refs.x_ref[row, 0, :, column]))
      packed_window.write_row(window_ref, 1 + tile.rows + row, column, values)

  @pl.when(row_block == 0)
  def _():
    window_ref[...] = jnp.zeros_like(window_ref)
    activate()
    packed_window.move_up(window_ref, tile.rows)

  # One basic block, so that the activation fills gaps between the products.
  @pl.when(row_block > 0)
  def _():
    activate()
    for row, pairs in packed_window.pairs_of_rows(blocks):
      sums = packed_window.sums(window_ref, refs.squares_ref, blocks, row, pairs, refs.bias_ref)
      for column, lanes, total in sums:
        refs.result_ref[row, pairs, column, :, lanes] = total.astype(refs.result_ref.dtype)
    packed_window.move_up(window_ref, tile.rows)


def _pairs(tiles: list) -> list[list]:
  """Returns the tiles in pairs, because two bfloat16 tiles fill the registers that are stored."""
  return [tiles[i : i + 2] for i in range(0, len(tiles), 2)]


def _products(refs: Refs, blocks: Blocks, row, columns, output, j, lanes) -> Iterator[Array]:
  """Yields pixels times filters, for each tap and tile of input channels."""
  problem = blocks.problem
  before = problem.before
  for t, tap in enumerate(problem.taps):
    if tap.output != output:
      continue
    (a, b), (down, right) = tap.phase, tap.shift
    moved_columns = slice(before + right + columns.start, before + right + columns.stop)
    for k in range(refs.activated_ref.shape[0]):
      pixels = refs.activated_ref[k, before + row + down, a, moved_columns, b]
      if problem.standardized:
        filters, contracted = refs.standardized_ref[t, k, lanes], 1
      else:
        filters, contracted = refs.standardized_ref[t, k, j, :, : lanes.stop - lanes.start], 0
      yield jax.lax.dot_general(
        pixels.reshape(-1, LANES),
        filters,
        (((1,), (contracted,)), ((), ())),
        preferred_element_type=jnp.float32,
      )


def _activate(refs: Refs, blocks: Blocks, activation: Activation | None, row_block) -> None:
  """Writes the activated, pooled input and, if there are several row blocks, the rows around it."""
  problem, before = blocks.problem, blocks.problem.before
  activated = functools.partial(_activated, activation)

  def write(row, phase, values):
    for k, lanes in enumerate(lane_tiles(problem.group_inputs)):
      columns, width = slice(before, before + problem.width), lanes.stop - lanes.start
      refs.activated_ref[k, row, phase, columns, :, :, :width] = values[..., lanes].astype(
        refs.activated_ref.dtype
      )

  if refs.row_above_ref is not None:
    is_padding = row_block == 0
    write(0, 0, jnp.where(is_padding, 0.0, activated(refs.row_above_ref[0, 0])))
  for row in range(blocks.tile.rows):
    if problem.pool:
      total = sum(activated(refs.x_ref[row, a, :, b]) for a, b in problem.phases)
      write(row, 0, total[:, None] * (1 / len(problem.phases)))
    else:
      for a in range(problem.row_phases):
        write(before + row, a, activated(refs.x_ref[row, a]))
  if refs.row_below_ref is not None:
    is_padding = row_block == blocks.row_blocks - 1
    values = jnp.where(is_padding, 0.0, activated(refs.row_below_ref[0, 0]))
    write(before + blocks.tile.rows, 0, values)


def _add_up_and_activate(refs: Refs, blocks: Blocks, activation: Activation | None) -> None:
  """Writes the sum and, activated, what it is rounded to."""
  # The outer loop runs over lanes, so that the scale stays in registers.
  for k, lanes in enumerate(lane_tiles(blocks.problem.in_channels)):
    scale = refs.scale_ref[:, lanes][None]
    for row in range(blocks.tile.rows):
      at = row, 0, slice(None), 0, slice(None), lanes
      scaled = scale * refs.branch_ref[at].astype(jnp.float32)
      total = refs.x_ref[at].astype(jnp.float32) + scaled
      rounded = total.astype(refs.sum_ref.dtype)
      refs.sum_ref[at] = rounded
      values = _activated(activation, rounded)
      refs.activated_ref[k, row, 0, :, 0] = values.astype(refs.activated_ref.dtype)


def _activated(activation: Activation | None, values):
  """Returns the activation's values in float32."""
  values = values.astype(jnp.float32)
  return values if activation is None else activation(values)


def _borders(blocks: Blocks) -> Iterator[tuple]:
  """Yields the parts of the activated input to which no pixel is written."""
  problem, whole = blocks.problem, slice(None)
  before, after = problem.before, problem.after
  if before:
    yield whole, slice(0, before)
    yield whole, whole, whole, slice(0, before)
  if after:
    yield whole, slice(before + blocks.tile.rows, None)
    yield whole, whole, whole, slice(before + problem.width, None)
  if remainder := problem.group_inputs % LANES:
    yield blocks.activated_shape[0] - 1, *[whole] * 5, slice(remainder, None)


def _standardize(refs: Refs, standardization: Standardization) -> None:
  """Writes the statistics, and the weights that are standardized with them."""
  statistics = filter_statistics(refs.weight_ref[...], refs.gain_ref[0], standardization)
  refs.statistics_ref[0:1], refs.statistics_ref[1:2] = (one[None] for one in statistics)
  write_standardized(refs)
