"""The convolution's backward pass as a Pallas TPU kernel.

A step of the grid has some pixels of the input, and the cotangents of all results that depend on
them. It makes the gradient of the input and its part of the gradient of the standardized weights,
which stays in VMEM while the positions go by. The activated input is computed again: reading it
would take longer.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.scaled_ws_conv.geometry import lane_tiles
from kernels.scaled_ws_conv.tile import Blocks
from kernels.tpu import LANES, SUBLANES, cost_estimate, result_like


# Traced once for all equal calls: the body is long.
@functools.partial(jax.jit, static_argnames=("blocks", "activation", "differentiates_input"))
def gradients(
  x: Float[Array, "h a w b n c"],
  cotangent: Float[Array, "h w q n o"],
  result_scale: Float[Array, "n o"] | None,
  mean_cotangent: Float[Array, "n o"] | None,
  input_cotangent: Float[Array, "h a w b n c"] | None,
  weight: Float[Array, "taps i o"],
  statistics: Float[Array, "8 o"],
  input_scale: Float[Array, "1"],
  *,
  blocks: Blocks,
  activation,
  differentiates_input: bool,
) -> tuple[
  Float[Array, "h a w b n c"] | None,
  Float[Array, "parts taps i o"],
  Float[Array, " o"] | None,
]:
  """Gradients of the input, of what the weights are multiplied by `input_scale`, and of the bias.

  Args:
    x: as the geometry has it.
    cotangent: of the result; at the end of a branch, of its sum with the shortcut.
    result_scale: float32, by which the result is multiplied in that sum.
    mean_cotangent: of the result's mean, float32, likewise.
    input_cotangent: of the input given back, if the geometry does that.
    weight: float32.
    statistics: of the weights, from the forward pass.
    input_scale: float32, of the activated input.
    blocks: of the backward pass.
    activation: or None.
    differentiates_input: there is a gradient of the input.

  Returns:
    The second one, float32, is the sum of its parts, one of each core that has seen it. At the end
    of a branch, who has the scale has the cotangent's sums as well, so there is no third one.
  """
  g, tile = blocks.geometry, blocks.tile
  grouped = g.groups > 1

  def input_at(*place):
    channel, images, row = blocks.at(*place)
    return row, 0, 0, 0, images, channel

  def result_rows(shape, row_of):
    def at(*place):
      channel, images, row = blocks.at(*place)
      return row_of(row), 0, 0, images, channel if grouped else 0

    return pl.BlockSpec(shape, at)

  def weight_at(*place):
    channel = blocks.at(*place)[0]
    return (0, 0, channel) if grouped else (0, channel, 0)

  def part_at(core, channel, position):
    part = 0 if tile.split_channels else core
    return part, *weight_at(core, channel, position)

  def statistics_at(*place):
    return 0, blocks.at(*place)[0] if grouped else 0

  def image_at(*place):
    channel, images, _ = blocks.at(*place)
    return images, channel if grouped else 0

  halo = blocks.result_halo_shape
  above = result_rows(halo, lambda row: jnp.maximum(row * tile.rows - 1, 0))
  below = result_rows(halo, lambda row: jnp.minimum((row + 1) * tile.rows, g.height - 1))
  halos = [above] * g.after + [below] * g.before if blocks.row_blocks > 1 else []

  parts = 1 if tile.split_channels else tile.cores
  bias_block = (None, None, SUBLANES, blocks.block_outputs)
  input_block = pl.BlockSpec(blocks.input_shape, input_at)
  operands = [
    weight,
    statistics,
    *[result_scale, mean_cotangent] * g.ends_branch,
    *[input_cotangent] * g.returns_input,
  ]
  results = [
    *[result_like(x, x.shape, x.dtype)] * differentiates_input,
    result_like(x, (parts, *weight.shape), jnp.float32),
    *[result_like(x, (*blocks.grid[:2], *bias_block[2:]), jnp.float32)] * (not g.ends_branch),
  ]
  gradients = pl.pallas_call(
    functools.partial(
      _body,
      blocks=blocks,
      activation=activation,
      differentiates_input=differentiates_input,
    ),
    grid=blocks.grid,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      input_block,
      result_rows(blocks.result_shape, lambda row: row),
      *halos,
      pl.BlockSpec(blocks.filter_shape, weight_at),
      pl.BlockSpec((SUBLANES, blocks.block_outputs), statistics_at),
      *[pl.BlockSpec(blocks.image_shape, image_at)] * 2 * g.ends_branch,
      *[input_block] * g.returns_input,
    ],
    out_specs=[
      *[input_block] * differentiates_input,
      pl.BlockSpec((None, *blocks.filter_shape), part_at),
      *[pl.BlockSpec(bias_block, lambda core, channel, _: (core, channel, 0, 0))]
      * (not g.ends_branch),
    ],
    out_shape=results,
    scratch_shapes=[
      pltpu.VMEM(blocks.activated_shape, x.dtype),
      pltpu.VMEM(blocks.cotangent_shape, x.dtype),
      pltpu.VMEM(blocks.standardized_shape, x.dtype),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary")
    ),
    cost_estimate=cost_estimate(
      [x, cotangent, *operands],
      results,
      macs=(1 + differentiates_input) * g.macs,
      transcendentals=x.size if activation else 0,
    ),
    name="scaled_ws_conv_gradients",
  )(input_scale, x, *[cotangent] * (1 + len(halos)), *operands)
  gradients = iter(gradients)
  x_gradient = next(gradients) if differentiates_input else None
  weight_gradient = next(gradients)
  if g.ends_branch:
    return x_gradient, weight_gradient, None
  bias_sums = jnp.sum(next(gradients), axis=2)
  if not tile.split_channels:
    bias_sums = jnp.sum(bias_sums, axis=0, keepdims=True)
  # Without groups, each channel block has seen all cotangents.
  return x_gradient, weight_gradient, jnp.reshape(bias_sums, -1) if grouped else bias_sums[0, 0]


def _body(input_scale, x, cotangent, *refs, blocks: Blocks, activation, differentiates_input):
  g, tile = blocks.geometry, blocks.tile
  *refs, activated, cotangents, standardized = refs
  if not g.ends_branch:
    *refs, bias_sums = refs
  *refs, weight_gradient = refs
  if differentiates_input:
    *refs, x_gradient = refs
  if g.returns_input:
    *refs, input_cotangent = refs
  if g.ends_branch:
    *refs, result_scale, mean_cotangent = refs
  *halos, weight, statistics = refs
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]
  inputs, outputs = (list(enumerate(lane_tiles(n))) for n in blocks.filter_shape[1:])

  @pl.when(place[2] == 0)
  def _():
    for sums in [weight_gradient] if g.ends_branch else [weight_gradient, bias_sums]:
      sums[...] = jnp.zeros_like(sums)
    for scratch, channels in ((activated, tile.channels), (cotangents, g.group_outputs)):
      # No pixel is written to the border of the cotangents, and to what is left of the lanes.
      if channels % LANES or (scratch is cotangents and g.before + g.after):
        scratch[...] = jnp.zeros_like(scratch)
    _standardize_transposed(weight, statistics, input_scale, standardized)

  def write(row, k, lanes, values):
    columns, width = slice(g.after, g.after + g.width), lanes.stop - lanes.start
    cotangents[k, row, columns, :, :, :width] = values.astype(cotangents.dtype)

  # By lanes, so that what is the same for all pixels stays in registers.
  for k, lanes in outputs:
    if halos and g.after:
      write(0, k, lanes, jnp.where(row_block == 0, 0, halos[0][0, ..., lanes]))
    if g.ends_branch:
      scale = result_scale[:, lanes][None, None]
      addend = mean_cotangent[:, lanes][None, None] * (1 / (g.height * g.width))
    else:
      total = jnp.zeros((tile.images, lanes.stop - lanes.start), jnp.float32)
    for row in range(tile.rows):
      values = cotangent[row, ..., lanes]
      if g.ends_branch:
        values = values.astype(jnp.float32) * scale + addend
      else:
        total += jnp.sum(values.astype(jnp.float32), axis=(0, 1))
      write(g.after + row, k, lanes, values)
    if not g.ends_branch:
      bias_sums[:, lanes] += jnp.sum(total.reshape(-1, SUBLANES, total.shape[-1]), axis=0)
    if halos and g.before:
      is_last = row_block == blocks.row_blocks - 1
      write(g.after + tile.rows, k, lanes, jnp.where(is_last, 0, halos[-1][0, ..., lanes]))

  def reached_by(tap, j, rows, columns):
    """Cotangents of the results to which some input pixels contribute by a tap."""
    (down, right), start = tap.shift, g.after
    moved_rows = slice(start + rows.start - down, start + rows.stop - down)
    moved_columns = slice(start + columns.start - right, start + columns.stop - right)
    return cotangents[j, moved_rows, moved_columns, tap.output].reshape(-1, LANES)

  def pull_back(phase, k, rows, columns):
    """Gradient of the activated input."""
    return sum(
      jnp.dot(
        reached_by(tap, j, rows, columns),
        standardized[i, j, k],
        preferred_element_type=jnp.float32,
      )
      for i, tap in enumerate(g.taps)
      if tap.phase == phase
      for j, _ in outputs
    )

  def value_and_slope(values):
    values = values.astype(jnp.float32)
    if activation is None:
      return values, jnp.ones_like(values)
    value, pull_back = jax.vjp(activation, values)
    return value, pull_back(jnp.ones_like(values))[0]

  phases = [(a, b) for a in range(g.row_phases) for b in range(g.column_phases)]
  for row in range(tile.rows):
    for column in range(0, g.width, tile.columns):
      some = slice(column, column + tile.columns)
      for k, lanes in inputs:
        width = lanes.stop - lanes.start
        total = 0.0
        for a, b in phases:
          value, slope = value_and_slope(x[row, a, some, b, :, lanes])
          if g.pool:
            value, slope = value * (1 / len(phases)), slope * (1 / len(phases))
          if differentiates_input:
            if not g.pool or (a, b) == phases[0]:
              gradient = pull_back((a, b), k, slice(row, row + 1), some)
              gradient = gradient.reshape(tile.columns, tile.images, LANES)[..., :width]
            at = row, a, some, b, slice(None), lanes
            through = gradient * slope
            if g.returns_input:
              through += input_cotangent[at].astype(jnp.float32)
            x_gradient[at] = through.astype(x.dtype)
          total = total + value if g.pool else value
          if not g.pool or (a, b) == phases[-1]:
            phase = (0, some, 0) if g.pool else (a, some, b)
            activated[k, row, *phase, :, :width] = total.astype(x.dtype)

  everywhere = slice(0, tile.rows), slice(0, g.width)
  for i, tap in enumerate(g.taps):
    a, b = tap.phase
    for k, rows in inputs:
      pixels = activated[k, :, a, :, b].reshape(-1, LANES)
      for j, lanes in outputs:
        product = jax.lax.dot_general(
          pixels,
          reached_by(tap, j, *everywhere),
          (((0,), (0,)), ((), ())),
          preferred_element_type=jnp.float32,
        )
        weight_gradient[i, rows, lanes] += product[
          : rows.stop - rows.start, : lanes.stop - lanes.start
        ]


def _standardize_transposed(weight, statistics, input_scale, standardized):
  taps, inputs, outputs = weight.shape
  mean, scale = statistics[0:1], statistics[1:2] * input_scale[0]
  for tap in range(taps):
    for j, lanes in enumerate(lane_tiles(outputs)):
      for k, rows in enumerate(lane_tiles(inputs)):
        values = jnp.transpose((weight[tap, rows, lanes] - mean[:, lanes]) * scale[:, lanes])
        height, width = values.shape
        if (height, width) != (LANES, LANES):
          standardized[tap, j, k] = jnp.zeros_like(standardized[tap, j, k])
        standardized[tap, j, k, :height, :width] = values.astype(standardized.dtype)
