"""The convolution's forward pass as a Pallas TPU kernel.

A step of the grid standardizes its weights in VMEM if they are new, writes the activated input
into a scratch with a border of zeros, and adds up a matrix product for each tap of the filter.
Everything is written out, so that the compiler fills the gaps in the matrix units' schedule with
the arithmetic of the activation.
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
@functools.partial(jax.jit, static_argnames=("blocks", "activation", "variance_floor"))
def convolve(
  x: Float[Array, "h a w b n c"],
  weight: Float[Array, "taps i o"],
  gain: Float[Array, "1 o"] | None,
  bias: Float[Array, "1 o"],
  input_scale: Float[Array, "1"],
  *,
  blocks: Blocks,
  activation,
  variance_floor: float,
) -> tuple[Float[Array, "h w q n o"], Float[Array, "8 o"], Float[Array, "n o"] | None]:
  """The result, statistics of the weights, and the mean of each image's results.

  Args:
    x: as the geometry has it.
    weight: float32.
    gain: float32; None takes the weights as they are, with mean 0 and scale 1.
    bias: float32.
    input_scale: float32, of the activated input.
    blocks: of the forward pass.
    activation: or None.
    variance_floor: see the reference.

  Returns:
    The statistics have mean and scale of each filter in the first two rows; the mean is None unless
    the geometry has one.
  """
  g, tile = blocks.geometry, blocks.tile

  def input_rows(shape, row_of):
    def at(*place):
      channel, images, row = blocks.at(*place)
      return row_of(row), 0, 0, 0, images, channel if g.groups > 1 else 0

    return pl.BlockSpec(shape, at)

  def of_channels(*shape):
    def at(*place):
      return *(0 for _ in shape), blocks.at(*place)[0]

    return pl.BlockSpec((*shape, tile.channels), at)

  def result_at(*place):
    channel, images, row = blocks.at(*place)
    return row, 0, 0, images, channel

  def statistics_at(core, channel, position):
    # Cores that have the same channels write their own, which are equal.
    part = 0 if tile.split_channels else core
    return part, 0, blocks.at(core, channel, position)[0]

  def image_at(*place):
    channel, images, _ = blocks.at(*place)
    return images, channel

  halo = blocks.input_halo_shape
  above = input_rows(halo, lambda row: jnp.maximum(row * tile.rows - 1, 0))
  below = input_rows(halo, lambda row: jnp.minimum((row + 1) * tile.rows, g.height - 1))
  halos = [above] * g.before + [below] * g.after if blocks.row_blocks > 1 else []

  parts = 1 if tile.split_channels else tile.cores
  parameters = [weight, bias] if gain is None else [weight, bias, gain]
  results = [
    result_like(x, (g.height, g.width, g.outputs, g.images, g.out_channels), x.dtype),
    result_like(x, (parts, SUBLANES, g.out_channels), jnp.float32),
    *[result_like(x, (g.images, g.out_channels), jnp.float32)] * g.ends_branch,
  ]
  result, statistics, *mean = pl.pallas_call(
    functools.partial(
      _body,
      blocks=blocks,
      activation=activation,
      variance_floor=variance_floor,
      halos=len(halos),
    ),
    grid=blocks.grid,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      input_rows(blocks.input_shape, lambda row: row),
      *halos,
      *(of_channels(*parameter.shape[:-2], parameter.shape[-2]) for parameter in parameters),
    ],
    out_specs=[
      pl.BlockSpec(blocks.result_shape, result_at),
      pl.BlockSpec((None, SUBLANES, tile.channels), statistics_at),
      *[pl.BlockSpec(blocks.image_shape, image_at)] * g.ends_branch,
    ],
    out_shape=results,
    scratch_shapes=[
      pltpu.VMEM(blocks.activated_shape, x.dtype),
      pltpu.VMEM(blocks.standardized_shape, x.dtype),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary")
    ),
    cost_estimate=cost_estimate(
      [x, *parameters],
      results,
      macs=g.macs,
      transcendentals=x.size if activation else 0,
    ),
    name="scaled_ws_conv",
  )(input_scale, *[x] * (1 + len(halos)), *parameters)
  return result, statistics[0], mean[0] if mean else None


def _body(input_scale, x, *refs, blocks: Blocks, activation, variance_floor, halos):
  g, tile = blocks.geometry, blocks.tile
  *refs, activated, standardized = refs
  if g.ends_branch:
    *refs, mean = refs
  *refs, result, statistics = refs
  halos, (weight, bias, *gain) = refs[:halos], refs[halos:]
  place = [pl.program_id(axis) for axis in range(3)]
  row_block = blocks.at(*place)[2]

  @pl.when(place[2] == 0)
  def _():
    filter_mean, scale = 0.0, 1.0
    if gain:
      filter_mean, scale = _statistics(weight, gain[0], variance_floor)
    statistics[0:1] = jnp.broadcast_to(filter_mean, bias.shape)
    statistics[1:2] = jnp.broadcast_to(scale, bias.shape)
    _standardize(weight, statistics, input_scale, standardized)
    for border in _borders(blocks):
      activated[border] = jnp.zeros_like(activated[border])

  if g.ends_branch:
    # Blocks of an image's rows follow each other.
    @pl.when(row_block == 0)
    def _():
      mean[...] = jnp.zeros_like(mean)

  def activate(values):
    values = values.astype(jnp.float32)
    return values if activation is None else activation(values)

  def write(row, phase, values):
    for i, lanes in enumerate(lane_tiles(g.group_inputs)):
      columns, width = slice(g.before, g.before + g.width), lanes.stop - lanes.start
      activated[i, row, phase, columns, :, :, :width] = values[..., lanes].astype(activated.dtype)

  if halos and g.before:
    write(0, 0, jnp.where(row_block == 0, 0.0, activate(halos[0][0, 0])))
  for row in range(tile.rows):
    if g.pool:
      phases = [(a, b) for a in range(g.row_phases) for b in range(g.column_phases)]
      total = sum(activate(x[row, a, :, b]) for a, b in phases)
      write(row, 0, total[:, None] * (1 / len(phases)))
    else:
      for a in range(g.row_phases):
        write(g.before + row, a, activate(x[row, a]))
  if halos and g.after:
    values = jnp.where(row_block == blocks.row_blocks - 1, 0.0, activate(halos[-1][0, 0]))
    write(g.before + tile.rows, 0, values)

  def product(row, column, output, j, lanes):
    total = bias[:, lanes]
    for i, tap in enumerate(g.taps):
      if tap.output != output:
        continue
      (a, b), (down, right) = tap.phase, tap.shift
      first = g.before + right + column
      for k in range(activated.shape[0]):
        pixels = activated[k, g.before + row + down, a, first : first + tile.columns, b]
        total += jnp.dot(
          pixels.reshape(-1, LANES),
          standardized[i, k, j, :, : lanes.stop - lanes.start],
          preferred_element_type=jnp.float32,
        )
    total = total.reshape(tile.columns, tile.images, -1)
    if g.ends_branch:
      mean[:, lanes] += jnp.sum(total, axis=0) * (1 / (g.height * g.width))
    return total.astype(result.dtype)

  tiles = list(enumerate(lane_tiles(tile.channels)))
  # Two tiles of bfloat16 fill the registers that are stored.
  pairs = [tiles[i : i + 2] for i in range(0, len(tiles), 2)]
  for row in range(tile.rows):
    for column in range(0, g.width, tile.columns):
      for output in range(g.outputs):
        for pair in pairs:
          products = [product(row, column, output, *one) for one in pair]
          some, lanes = (
            slice(column, column + tile.columns),
            slice(pair[0][1].start, pair[-1][1].stop),
          )
          result[row, some, output, :, lanes] = jnp.concatenate(products, axis=-1)


def _borders(blocks: Blocks):
  """Parts of the activated input that no pixel is written to."""
  g = blocks.geometry
  whole = slice(None)
  if g.before:
    yield whole, slice(0, g.before)
    yield whole, whole, whole, slice(0, g.before)
  if g.after:
    yield whole, slice(g.before + blocks.tile.rows, None)
    yield whole, whole, whole, slice(g.before + g.width, None)
  if remainder := g.group_inputs % LANES:
    yield blocks.activated_shape[0] - 1, *[whole] * 5, slice(remainder, None)


def _statistics(weight, gain, variance_floor):
  """Mean and scale of each filter, as in the reference."""
  filters = weight[...]
  fan_in = filters.shape[0] * filters.shape[1]
  origin = filters[0, :1]
  offset = filters - origin[None]
  mean = jnp.sum(offset, axis=(0, 1))[None] / fan_in
  variance = jnp.sum(offset * offset, axis=(0, 1))[None] / fan_in - mean * mean
  scale = jax.lax.rsqrt(jnp.maximum(variance * fan_in, variance_floor)) * gain[...]
  return origin + mean, scale


def _standardize(weight, statistics, input_scale, standardized):
  """The scale of the input is put into that of the weights, where it costs nothing."""
  taps, inputs, outputs = weight.shape
  mean, scale = statistics[0:1], statistics[1:2] * input_scale[0]
  for tap in range(taps):
    for i, rows in enumerate(lane_tiles(inputs)):
      for j, lanes in enumerate(lane_tiles(outputs)):
        values = (weight[tap, rows, lanes] - mean[:, lanes]) * scale[:, lanes]
        height, width = values.shape
        if (height, width) != (LANES, LANES):
          standardized[tap, i, j] = jnp.zeros_like(standardized[tap, i, j])
        standardized[tap, i, j, :height, :width] = values.astype(standardized.dtype)
