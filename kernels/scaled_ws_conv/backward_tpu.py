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
  mean_cotangent: Float[Array, "n o"] | None,
  input_cotangent: Float[Array, "h a w b n c"] | None,
  weight: Float[Array, "taps i o"],
  statistics: Float[Array, "8 o"],
  input_scale: Float[Array, "1"],
  *,
  blocks: Blocks,
  activation,
  differentiates_input: bool,
) -> tuple[Float[Array, "h a w b n c"] | None, Float[Array, "parts taps i o"], Float[Array, " o"]]:
  """Gradients of the input, of what the weights are multiplied by `input_scale`, and of the bias.

  Args:
    x: as the geometry has it.
    cotangent: of the result.
    mean_cotangent: of the mean, float32, if the geometry has one.
    input_cotangent: of the input given back, if the geometry does that.
    weight: float32.
    statistics: of the weights, from the forward pass.
    input_scale: float32, of the activated input.
    blocks: of the backward pass.
    activation: or None.
    differentiates_input: there is a gradient of the input.

  Returns:
    The second one, float32, is the sum of its parts, one of each core that has seen it.
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
    *[mean_cotangent] * g.returns_mean,
    *[input_cotangent] * g.returns_input,
  ]
  results = [
    *[result_like(x, x.shape, x.dtype)] * differentiates_input,
    result_like(x, (parts, *weight.shape), jnp.float32),
    result_like(x, (*blocks.grid[:2], *bias_block[2:]), jnp.float32),
  ]
  *x_gradient, weight_gradient, bias_sums = pl.pallas_call(
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
      *[pl.BlockSpec(blocks.image_shape, image_at)] * g.returns_mean,
      *[input_block] * g.returns_input,
    ],
    out_specs=[
      *[input_block] * differentiates_input,
      pl.BlockSpec((None, *blocks.filter_shape), part_at),
      pl.BlockSpec(bias_block, lambda core, channel, _: (core, channel, 0, 0)),
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
  bias_sums = jnp.sum(bias_sums, axis=2)
  if not tile.split_channels:
    bias_sums = jnp.sum(bias_sums, axis=0, keepdims=True)
  # Without groups, each channel block has seen all cotangents.
  bias_gradient = jnp.reshape(bias_sums, -1) if grouped else bias_sums[0, 0]
  return x_gradient[0] if x_gradient else None, weight_gradient, bias_gradient


def _body(input_scale, x, cotangent, *refs, blocks: Blocks, activation, differentiates_input):
  weight_gradient, bias_sums, activated, cotangents, standardized = refs[-5:]
  g, tile = blocks.geometry, blocks.tile
  refs = refs[:-5]
  if differentiates_input:
    *refs, x_gradient = refs
  if g.returns_input:
    *refs, input_cotangent = refs
  if g.returns_mean:
    *refs, mean_cotangent = refs
  *halos, weight, statistics = refs
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]
  inputs, outputs = (list(enumerate(lane_tiles(n))) for n in blocks.filter_shape[1:])

  @pl.when(place[2] == 0)
  def _():
    weight_gradient[...] = jnp.zeros_like(weight_gradient)
    bias_sums[...] = jnp.zeros_like(bias_sums)
    for scratch, channels in ((activated, tile.channels), (cotangents, g.group_outputs)):
      # No pixel is written to the border of the cotangents, and to what is left of the lanes.
      if channels % LANES or (scratch is cotangents and g.before + g.after):
        scratch[...] = jnp.zeros_like(scratch)
    _standardize_transposed(weight, statistics, input_scale, standardized)

  def write(row, values):
    for j, lanes in outputs:
      columns, width = slice(g.after, g.after + g.width), lanes.stop - lanes.start
      cotangents[j, row, columns, :, :, :width] = values[..., lanes]

  if halos and g.after:
    write(0, jnp.where(row_block == 0, 0, halos[0][0]))
  sums = jnp.zeros((tile.images, g.group_outputs), jnp.float32)
  for row in range(tile.rows):
    values = cotangent[row].astype(jnp.float32)
    if g.returns_mean:
      values += mean_cotangent[...][None, None] * (1 / (g.height * g.width))
    sums += jnp.sum(values, axis=(0, 1))
    write(g.after + row, values.astype(x.dtype))
  bias_sums[...] += jnp.sum(sums.reshape(-1, *bias_sums.shape), axis=0)
  if halos and g.before:
    write(g.after + tile.rows, jnp.where(row_block == blocks.row_blocks - 1, 0, halos[-1][0]))

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
