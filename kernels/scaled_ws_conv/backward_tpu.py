"""The convolution's backward pass as a Pallas TPU kernel.

Each step of the grid processes some pixels of the input and the cotangents of all results that
depend on them. It computes the input's gradient and adds to the gradient of the standardized
weights, which stays in VMEM for all positions. The activated input is recomputed, because reading
it would take longer. In a packed kernel (`packing`), the cotangents come one step ahead of the
input, and stay in VMEM as long as results depend on them.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES, SUBLANES
from kernels.scaled_ws_conv import packed_window, packing
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters
from kernels.scaled_ws_conv.formulas import Activation
from kernels.scaled_ws_conv.packing import HALF
from kernels.scaled_ws_conv.problem import Problem, lane_tiles
from kernels.scaled_ws_conv.standardize_tpu import write_standardized
from kernels.scaled_ws_conv.tile import Blocks
from kernels.tpu import result_like


class Refs(NamedTuple):
  """The kernel's refs; None where absent.

  Axes: h and w count rows and columns of the result, a and b the input's row and column phases, q
  the results of a pixel, n images, i and o input and output channels, k and j tiles of 128 of
  these, t the filter's taps. If packed, w counts pairs of columns, and b and q the two of a pair.
  """

  input_scale_ref: Any  # [1], in SMEM, of raw filters
  x_ref: Any  # [h, a, w, b, n, i]
  cotangent_ref: Any  # [h, w, q, n, o]
  row_above_ref: Any  # [1, w, q, n, o]
  row_below_ref: Any  # [1, w, q, n, o]
  weight_ref: Any  # [t, i, o], of raw filters
  statistics_ref: Any  # [8, o], of raw filters: mean and scale of each in the first two rows
  result_scale_ref: Any  # [n, o], at the end of a branch
  mean_cotangent_ref: Any  # [n, o], at the end of a branch
  input_cotangent_ref: Any  # [h, a, w, b, n, i], if the input is returned
  branch_ref: Any  # [h, a, w, b, n, i], of a sum
  x_gradient_ref: Any  # [h, a, w, b, n, i], if the input is differentiated
  weight_gradient_ref: Any  # of the standardized weights, [t, i, o], or [t, k, o, 128] in rows
  bias_sums_ref: Any  # [8, o], not at the end of a branch
  products_ref: Any  # [n, i], of a sum: gradient of the input * branch, over space
  gradients_ref: Any  # [n, i], of a sum: gradient of the input, over space
  sums_ref: Any  # scratch [t, k, j, 128, 128], or packed [terms, i, 128], of a gradient in rows
  activated_ref: Any  # scratch [k, h, a, w, b, n, 128], or packed [k, q, h, w, n, 128]
  cotangents_ref: Any  # scratch [j, h + border, w + border, q, n, 128], or the packed window
  standardized_ref: Any  # [t, k, o, 128]; scratch [t, k, j, 128, 128] for raw filters
  squares_ref: Any  # scratch [products, 128, 128] if packed


class Gradients(NamedTuple):
  """Arrays that the kernel has computed; None where the problem does not ask for one.

  Attributes:
    input: gradient of the input.
    filters: gradient of `input_scale` * standardized weight, of the form of raw weights or of the
      rows. It is the sum of the parts: one for each core, in float32, or a single one if the cores
      split the channels, in the dtype of the rows' sink.
    bias: gradient of the bias, not at the end of a branch, where the caller gets the cotangent's
      sums along with the scale's gradient.
    products: sums over space of the input's gradient * branch, if the input is a sum.
    inputs: sums over space of the input's gradient, if the input is a sum.
  """

  input: Float[Array, "h a w b n i"] | None
  filters: Float[Array, "parts taps ..."]
  bias: Float[Array, " o"] | None
  products: Float[Array, "n i"] | None
  inputs: Float[Array, "n i"] | None


# Under jit, equal calls are traced only once: the body is long.
@functools.partial(jax.jit, static_argnames=("blocks", "activation", "differentiates_input"))
def gradients(
  x: Float[Array, "h a w b n i"],
  cotangent: Float[Array, "h w q n o"],
  result_scale: Float[Array, "n o"] | None,
  mean_cotangent: Float[Array, "n o"] | None,
  input_cotangent: Float[Array, "h a w b n i"] | None,
  branch: Float[Array, "h w n i"] | None,
  filters: RawFilters | StandardizedFilters,
  statistics: Float[Array, "8 o"] | None,
  *,
  blocks: Blocks,
  activation: Activation | None,
  differentiates_input: bool,
) -> Gradients:
  """Returns the gradients of the input, of `input_scale` * standardized weight, and of the bias.

  Args:
    x: input, of shape `Problem.input_shape`.
    cotangent: cotangent of the result or, at the end of a branch, of the result's sum with the
      shortcut.
    result_scale: float32 factor of the result in that sum; None except at the end of a branch.
    mean_cotangent: cotangent of the mean over each image's results, float32; None except at the end
      of a branch.
    input_cotangent: cotangent of the returned input; None if the problem returns none.
    branch: branch of the sum that the input is; None if the input is not a sum.
    filters: filters of the kind that the problem names.
    statistics: statistics of raw filters from the forward pass, otherwise None.
    blocks: blocks of the backward pass.
    activation: activation of the input, or None.
    differentiates_input: whether the input's gradient is computed.
  """
  problem, tile = blocks.problem, blocks.tile
  grouped = problem.groups > 1
  x_shape = x.shape
  x = x.reshape(*x_shape[:2], *blocks.input_columns, *x_shape[4:])
  cotangent = cotangent.reshape(problem.height, *blocks.result_columns, *cotangent.shape[3:])

  def input_at(*place):
    channel, images, row = blocks.at(*place)
    return blocks.finished(row), 0, 0, 0, images, channel

  def cotangent_block(shape, row_of=lambda row: row) -> Operand:
    def at(*place):
      channel, images, row = blocks.at(*place)
      return row_of(blocks.arriving(row)), 0, 0, images, channel if grouped else 0

    return Operand(cotangent, pl.BlockSpec(shape, at))

  def weight_at(*place):
    channel = blocks.at(*place)[0]
    at = (0, 0, channel) if grouped else (0, channel, 0)
    return (*at, 0) if problem.standardized else at

  def part_at(core, channel, position):
    part = 0 if tile.split_channels else core
    return part, *weight_at(core, channel, position)

  def statistics_at(*place):
    return 0, blocks.at(*place)[0] if grouped else 0

  def image_at(*place):
    channel, images, _ = blocks.at(*place)
    return images, channel if grouped else 0

  def input_image_at(core, channel, position):
    part = core if blocks.image_parts > 1 else 0
    channel, images, _ = blocks.at(core, channel, position)
    return part, images, channel

  halo = blocks.result_halo_shape
  above = cotangent_block(halo, lambda row: jnp.maximum(row * tile.rows - 1, 0))
  below = cotangent_block(halo, lambda row: jnp.minimum((row + 1) * tile.rows, problem.height - 1))
  input_block = pl.BlockSpec(blocks.input_shape, input_at)
  image_block = pl.BlockSpec(blocks.image_shape, image_at)
  input_sums = Result(
    result_like(x, (blocks.image_parts, problem.images, problem.in_channels), jnp.float32),
    pl.BlockSpec((None, *blocks.input_image_shape), input_image_at),
  )
  bias_sums_shape = SUBLANES, blocks.block_outputs
  raw = None if problem.standardized else filters
  gradient_dtype = jnp.dtype(jnp.float32)
  if raw:
    weight = Operand(raw.weight, pl.BlockSpec(blocks.filter_shape, weight_at))
  else:
    weight = Operand(filters.rows, pl.BlockSpec(blocks.rows_shape, weight_at))
    if blocks.parts == 1 and filters.gradient_sink is not None:
      gradient_dtype = filters.gradient_sink.dtype
  weight_block = weight.spec.block_shape

  written = call(
    functools.partial(_packed_body if tile.packed else _body, blocks=blocks, activation=activation),
    Refs(
      input_scale_ref=raw
      and Operand(jnp.asarray(raw.input_scale)[None], pl.BlockSpec(memory_space=pltpu.SMEM)),
      x_ref=Operand(x, input_block),
      cotangent_ref=cotangent_block(blocks.result_shape),
      row_above_ref=above if blocks.has_neighbors and problem.after else None,
      row_below_ref=below if blocks.has_neighbors and problem.before else None,
      weight_ref=raw and weight,
      statistics_ref=raw
      and Operand(statistics, pl.BlockSpec((SUBLANES, blocks.block_outputs), statistics_at)),
      result_scale_ref=Operand(result_scale, image_block) if problem.ends_branch else None,
      mean_cotangent_ref=Operand(mean_cotangent, image_block) if problem.ends_branch else None,
      input_cotangent_ref=Operand(input_cotangent, input_block) if problem.returns_input else None,
      branch_ref=Operand(branch.reshape(x.shape), input_block) if problem.sums_input else None,
      x_gradient_ref=Result(result_like(x, x.shape, x.dtype), input_block)
      if differentiates_input
      else None,
      weight_gradient_ref=Result(
        result_like(x, (blocks.parts, *weight.array.shape), gradient_dtype),
        pl.BlockSpec((None, *weight_block), part_at),
      ),
      bias_sums_ref=None
      if problem.ends_branch
      else Result(
        result_like(x, (*blocks.grid[:2], *bias_sums_shape), jnp.float32),
        pl.BlockSpec(
          (None, None, *bias_sums_shape), lambda core, channel, _: (core, channel, 0, 0)
        ),
      ),
      products_ref=input_sums if problem.sums_input else None,
      gradients_ref=input_sums if problem.sums_input else None,
      sums_ref=None if raw else pltpu.VMEM(blocks.sums_shape, jnp.float32),
      activated_ref=pltpu.VMEM(blocks.activated_shape, x.dtype),
      cotangents_ref=pltpu.VMEM(blocks.cotangent_shape, x.dtype),
      standardized_ref=pltpu.VMEM(blocks.squares_shape, x.dtype) if raw else weight,
      squares_ref=pltpu.VMEM(blocks.packed_squares_shape, x.dtype) if tile.packed else None,
    ),
    name="scaled_ws_conv_gradients",
    grid=blocks.grid,
    dimension_semantics=("parallel", "arbitrary", "arbitrary"),
    macs=(1 + differentiates_input) * problem.macs,
    transcendentals=x.size if activation else 0,
  )
  x_gradient = written.x_gradient_ref
  if differentiates_input:
    x_gradient = x_gradient.reshape(x_shape)
  products, inputs = (
    jnp.sum(sums, axis=0) if problem.sums_input else None
    for sums in (written.products_ref, written.gradients_ref)
  )
  if problem.ends_branch:
    return Gradients(x_gradient, written.weight_gradient_ref, None, products, inputs)
  bias_sums = jnp.sum(written.bias_sums_ref, axis=2)
  if not tile.split_channels:
    bias_sums = jnp.sum(bias_sums, axis=0, keepdims=True)
  # Without groups, each channel block reads all cotangents, so the sums of any block are complete.
  bias_gradient = jnp.reshape(bias_sums, -1) if grouped else bias_sums[0, 0]
  return Gradients(x_gradient, written.weight_gradient_ref, bias_gradient, products, inputs)


def _body(refs: Refs, *, blocks: Blocks, activation: Activation | None):
  """Computes the gradients of the input and of the standardized weights, over all taps t.

  x_gradient[h, w] = slope * sum of cotangents[h - down, w - right] @ transposed(standardized[t])
  weight_gradient[t] += sum of transposed(activated[h, w]) @ cotangents[h - down, w - right]
  """
  problem, tile = blocks.problem, blocks.tile
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]
  sums_ref = refs.weight_gradient_ref if refs.sums_ref is None else refs.sums_ref

  @pl.when(place[2] == 0)
  def _():
    sums_ref[...] = jnp.zeros_like(sums_ref)
    _clear(refs, blocks)
    if not problem.standardized:
      write_standardized(refs)

  if problem.sums_input:
    # The row blocks of an image come one after another, but its first one may be another core's.
    @pl.when((row_block == 0) | (place[2] == 0))
    def _():
      for ref in (refs.products_ref, refs.gradients_ref):
        ref[...] = jnp.zeros_like(ref)

  _load_cotangents(refs, blocks, row_block)

  for row, column, (k, lanes) in itertools.product(
    range(tile.rows),
    range(0, problem.width, tile.columns),
    enumerate(lane_tiles(refs.x_ref.shape[-1])),
  ):
    _differentiate_input(
      refs, blocks, activation, row, slice(column, column + tile.columns), k, lanes
    )

  _add_weight_gradient(refs, blocks, sums_ref)

  if problem.sums_input:
    _add_sums_over_space(refs, blocks)

  if refs.sums_ref is not None:

    @pl.when(place[2] == blocks.grid[2] - 1)
    def _():
      _write_rows(refs.sums_ref, refs.weight_gradient_ref)


def _packed_body(refs: Refs, *, blocks: Blocks, activation: Activation | None):
  """Takes in a block of cotangents, and computes the gradients for the block above it."""
  problem, tile = blocks.problem, blocks.tile
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]
  window_ref = refs.cotangents_ref

  @pl.when(place[2] == 0)
  def _():
    for ref in (refs.sums_ref, refs.bias_sums_ref):
      ref[...] = jnp.zeros_like(ref)
    packed_window.write_squares(refs.standardized_ref, refs.squares_ref, blocks)

  def take_in():
    is_padding = row_block == blocks.row_blocks
    total = jnp.zeros((tile.images, problem.out_channels), jnp.float32)
    for row, column in itertools.product(range(tile.rows), range(2)):
      values = jnp.where(is_padding, 0, refs.cotangent_ref[row, :, column])
      total += jnp.sum(values.astype(jnp.float32), axis=0)
      packed_window.write_row(window_ref, 1 + tile.rows + row, column, values)
    refs.bias_sums_ref[...] += jnp.sum(total.reshape(-1, SUBLANES, total.shape[-1]), axis=0)

  @pl.when(row_block == 0)
  def _():
    window_ref[...] = jnp.zeros_like(window_ref)
    take_in()
    packed_window.move_up(window_ref, tile.rows)

  # One basic block, so that the activation fills gaps between the products.
  @pl.when(row_block > 0)
  def _():
    take_in()
    for row, pairs in packed_window.pairs_of_rows(blocks):
      _differentiate_packed_input(refs, blocks, activation, row, pairs)
    _add_packed_weight_gradient(refs, blocks)
    packed_window.move_up(window_ref, tile.rows)

  @pl.when(place[2] == blocks.grid[2] - 1)
  def _():
    _write_rows_of_packed(refs.sums_ref, refs.weight_gradient_ref)


def _differentiate_packed_input(refs: Refs, blocks: Blocks, activation, row, pairs) -> None:
  """Writes the gradient of some pairs of pixels, and activates them for the weights' gradient."""

  def activate(column, lanes):
    value, slope = _value_and_slope(activation, refs.x_ref[row, 0, pairs, column, :, lanes])
    at = lanes.start // LANES, column, row, pairs, slice(None), slice(0, lanes.stop - lanes.start)
    refs.activated_ref[at] = value.astype(refs.activated_ref.dtype)
    return slope

  if refs.x_gradient_ref is None:
    for column, lanes in itertools.product(range(2), lane_tiles(blocks.problem.in_channels)):
      activate(column, lanes)
    return
  sums = packed_window.sums(refs.cotangents_ref, refs.squares_ref, blocks, row, pairs, None)
  for column, lanes, total in sums:
    gradient = (total * activate(column, lanes)).astype(refs.x_gradient_ref.dtype)
    refs.x_gradient_ref[row, 0, pairs, column, :, lanes] = gradient


def _add_packed_weight_gradient(refs: Refs, blocks: Blocks) -> None:
  """Adds the products of activated inputs and the cotangents that each term reaches."""
  problem, tile = blocks.problem, blocks.tile
  # All input channels are rows of one product, or their last half would take as long as a tile.
  pixels = jnp.concatenate(
    [
      refs.activated_ref[k, ..., : lanes.stop - lanes.start].reshape(-1, lanes.stop - lanes.start)
      for k, lanes in enumerate(lane_tiles(problem.in_channels))
    ],
    axis=-1,
  )
  rows, pairs = slice(0, tile.rows), slice(0, problem.width // 2)
  for i, term in enumerate(packing.terms(problem.out_channels, of_pairs=False)):
    cotangents = [
      packed_window.reached(refs.cotangents_ref, term, rows, pairs, column) for column in range(2)
    ]
    refs.sums_ref[i] += jax.lax.dot_general(
      pixels,
      jnp.concatenate(cotangents),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )


def _write_rows_of_packed(sums_ref, weight_gradient_ref) -> None:
  """Writes the sums of each term's taps as rows."""
  inputs, (taps, _, outputs, _) = sums_ref.shape[1], weight_gradient_ref.shape
  if inputs % LANES:
    unused = jnp.zeros((taps, outputs, HALF), weight_gradient_ref.dtype)
    weight_gradient_ref[:, inputs // LANES, :, HALF:] = unused
  for (i, term), (k, lanes) in itertools.product(
    enumerate(packing.terms(outputs, of_pairs=False)), enumerate(lane_tiles(inputs))
  ):
    values = sums_ref[i, lanes].T.astype(weight_gradient_ref.dtype)
    for half in packing.halves(term.tile, outputs):
      right = term.right + half.right
      if right in packing.SHIFTS:
        at = packing.tap(-term.down, -right), k, slice(half.channel, half.channel + HALF)
        weight_gradient_ref[*at, : lanes.stop - lanes.start] = values[half.lanes]


def _write_rows(sums_ref, weight_gradient_ref) -> None:
  """Writes squares as rows: transposing once is cheaper than making the products in rows."""
  taps, inputs, outputs, _ = weight_gradient_ref.shape
  for t, k, (j, rows) in itertools.product(
    range(taps), range(inputs), enumerate(lane_tiles(outputs))
  ):
    values = sums_ref[t, k, j].T[: rows.stop - rows.start]
    weight_gradient_ref[t, k, rows] = values.astype(weight_gradient_ref.dtype)


def _add_weight_gradient(refs: Refs, blocks: Blocks, sums_ref) -> None:
  """Adds the products of activated inputs and cotangents, summed over pixels."""
  problem = blocks.problem
  rows, columns = slice(0, blocks.tile.rows), slice(0, problem.width)
  for t, tap in enumerate(problem.taps):
    a, b = tap.phase
    for k, inputs in enumerate(lane_tiles(blocks.block_inputs)):
      pixels = refs.activated_ref[k, :, a, :, b].reshape(-1, LANES)
      for j, outputs in enumerate(lane_tiles(blocks.block_outputs)):
        product = jax.lax.dot_general(
          pixels,
          _reached(refs, blocks, tap, j, rows, columns),
          (((0,), (0,)), ((), ())),
          preferred_element_type=jnp.float32,
        )
        if problem.standardized:
          sums_ref[t, k, j] += product
        else:
          height, width = inputs.stop - inputs.start, outputs.stop - outputs.start
          sums_ref[t, inputs, outputs] += product[:height, :width]


def _add_sums_over_space(refs: Refs, blocks: Blocks) -> None:
  """Adds up the input's gradient, as it has been rounded, and its product with the branch.

  The vector unit does this while the matrix units are busy with the weights' gradient. Where the
  gradient is computed, the vector unit is the limit.
  """
  for lanes in lane_tiles(blocks.block_inputs):
    products = gradients = 0.0
    for row, column in itertools.product(range(blocks.tile.rows), range(blocks.problem.width)):
      at = row, 0, column, 0, slice(None), lanes
      gradient = refs.x_gradient_ref[at].astype(jnp.float32)
      products += gradient * refs.branch_ref[at].astype(jnp.float32)
      gradients += gradient
    refs.products_ref[:, lanes] += products
    refs.gradients_ref[:, lanes] += gradients


def _differentiate_input(refs: Refs, blocks: Blocks, activation, row, columns, k, lanes) -> None:
  """Writes the gradient of some pixels, and activates them for the weights' gradient."""
  problem, tile = blocks.problem, blocks.tile
  width, phases = lanes.stop - lanes.start, problem.phases
  pooled = 0.0
  for a, b in phases:
    at = row, a, columns, b, slice(None), lanes
    value, slope = _value_and_slope(activation, refs.x_ref[at])
    if problem.pool:
      value, slope = value * (1 / len(phases)), slope * (1 / len(phases))
    if refs.x_gradient_ref is not None:
      # All phases of a pooled input share the gradient of their mean.
      if not problem.pool or (a, b) == phases[0]:
        gradient = sum(
          _through_filters(
            refs,
            problem,
            _reached(refs, blocks, tap, j, slice(row, row + 1), columns),
            (t, k, j, outputs),
          )
          for t, tap in enumerate(problem.taps)
          if tap.phase == (a, b)
          for j, outputs in enumerate(lane_tiles(blocks.block_outputs))
        )
        gradient = gradient.reshape(tile.columns, tile.images, LANES)[..., :width]
      through_activation = gradient * slope
      if refs.input_cotangent_ref is not None:
        through_activation += refs.input_cotangent_ref[at].astype(jnp.float32)
      refs.x_gradient_ref[at] = through_activation.astype(refs.x_ref.dtype)
    if not problem.pool:
      refs.activated_ref[k, row, a, columns, b, :, :width] = value.astype(refs.x_ref.dtype)
    else:
      pooled = pooled + value
  if problem.pool:
    refs.activated_ref[k, row, 0, columns, 0, :, :width] = pooled.astype(refs.x_ref.dtype)


def _through_filters(refs: Refs, problem: Problem, cotangents, at):
  """Returns cotangents times the transposed filters of a tap and tiles of channels."""
  t, k, j, outputs = at
  if problem.standardized:
    filters = refs.standardized_ref[t, k, outputs]
    cotangents, contracted = cotangents[:, : filters.shape[0]], 0
  else:
    # The matrix unit transposes its weights while it loads them.
    filters, contracted = refs.standardized_ref[t, k, j], 1
  return jax.lax.dot_general(
    cotangents,
    filters,
    (((1,), (contracted,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _reached(refs: Refs, blocks: Blocks, tap, j, rows, columns):
  """Returns the cotangents of the results to which some input pixels contribute through a tap."""
  (down, right), start = tap.shift, blocks.problem.after
  moved_rows = slice(start + rows.start - down, start + rows.stop - down)
  moved_columns = slice(start + columns.start - right, start + columns.stop - right)
  return refs.cotangents_ref[j, moved_rows, moved_columns, tap.output].reshape(-1, LANES)


def _value_and_slope(activation: Activation | None, values):
  """Returns the activation's values and derivatives in float32."""
  values = values.astype(jnp.float32)
  if activation is None:
    return values, jnp.ones_like(values)
  value, pull_back = jax.vjp(activation, values)
  return value, pull_back(jnp.ones_like(values))[0]


def _load_cotangents(refs: Refs, blocks: Blocks, row_block) -> None:
  """Copies the cotangents of the convolution's result between borders and sums them for the bias.

  At the end of a branch, result_scale * cotangent + mean_cotangent / pixels is the cotangent of the
  convolution's result.
  """
  problem, tile, start = blocks.problem, blocks.tile, blocks.problem.after

  def write(row, j, lanes, values):
    columns, width = slice(start, start + problem.width), lanes.stop - lanes.start
    refs.cotangents_ref[j, row, columns, :, :, :width] = values.astype(refs.cotangents_ref.dtype)

  # The outer loop runs over lanes, so that what all pixels share stays in registers.
  for j, lanes in enumerate(lane_tiles(blocks.block_outputs)):
    if refs.row_above_ref is not None:
      is_padding = row_block == 0
      write(0, j, lanes, jnp.where(is_padding, 0, refs.row_above_ref[0, ..., lanes]))
    if problem.ends_branch:
      scale = refs.result_scale_ref[:, lanes][None, None]
      pixels = problem.height * problem.width
      addend = refs.mean_cotangent_ref[:, lanes][None, None] * (1 / pixels)
    else:
      total = jnp.zeros((tile.images, lanes.stop - lanes.start), jnp.float32)
    for row in range(tile.rows):
      values = refs.cotangent_ref[row, ..., lanes]
      if problem.ends_branch:
        values = values.astype(jnp.float32) * scale + addend
      else:
        total += jnp.sum(values.astype(jnp.float32), axis=(0, 1))
      write(start + row, j, lanes, values)
    if not problem.ends_branch:
      eighths = total.reshape(-1, SUBLANES, total.shape[-1])
      refs.bias_sums_ref[:, lanes] += jnp.sum(eighths, axis=0)
    if refs.row_below_ref is not None:
      is_padding = row_block == blocks.row_blocks - 1
      values = jnp.where(is_padding, 0, refs.row_below_ref[0, ..., lanes])
      write(start + tile.rows, j, lanes, values)


def _clear(refs: Refs, blocks: Blocks) -> None:
  """Zeroes the bias's sums, and those scratch buffers that are never written completely."""
  problem = blocks.problem
  if refs.bias_sums_ref is not None:
    refs.bias_sums_ref[...] = jnp.zeros_like(refs.bias_sums_ref)
  # No pixel is ever written to the unused lanes or to the border of the cotangents.
  if blocks.tile.channels % LANES:
    refs.activated_ref[...] = jnp.zeros_like(refs.activated_ref)
  if problem.group_outputs % LANES or problem.before + problem.after:
    refs.cotangents_ref[...] = jnp.zeros_like(refs.cotangents_ref)
