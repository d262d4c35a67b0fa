"""How the convolution kernels cut their work into the steps of a grid."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Literal

import jax

from kernels.scaled_ws_conv.geometry import Geometry
from kernels.tpu import (
  IMAGES_MULTIPLE,
  LANES,
  SUBLANES,
  VMEM_BYTES,
  check_multiples,
  divisors,
  read_tiles,
)

Direction = Literal["forward", "backward"]
VMEM_BYTES_PREFERRED = 12 << 20
"""Of `VMEM_BYTES`; the compiler keeps spilled registers in the rest, as many as 5 MiB of them. With
larger blocks, some kernels do not compile. A sweep tries them."""
PRODUCTS_MAX = 3_600
"""128 x 128 x 16 matrix products that are written out one by one in a kernel."""
PIXELS_AT_A_TIME = 224
"""Whose results fit the registers, and that are enough for the matrix units to work on."""
CHOSEN = pathlib.Path(__file__).parent / "tiles.json"

Array = tuple[tuple[int, ...], int]
"""Shape and bytes of an element."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """The grid is [cores, channel blocks of a core, positions of a core].

  A position is a block of rows of a block of images; all positions of a channel block share its
  weights.

  Attributes:
    images: of a block.
    rows: of a block, in pixels of the result.
    columns: of the result that are computed at a time.
    channels: of a block: outputs of the forward pass, inputs of the backward pass; those of one
      group where there are several.
    split_channels: the cores share the channel blocks rather than the positions.
    cores: that work at the same time.
  """

  images: int
  rows: int
  columns: int
  channels: int
  split_channels: bool
  cores: int = 2


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of a direction's grid.

  Attributes:
    geometry: of the convolution.
    direction: of the pass.
    tile: even parts of the work.

  Raises:
    ValueError: the tile does not divide the work, or its blocks do not fit VMEM.
  """

  geometry: Geometry
  direction: Direction
  tile: Tile

  def __post_init__(self):
    geometry, tile = self.geometry, self.tile
    parts = self.channel_blocks if tile.split_channels else self.positions
    check_multiples(
      ("images", geometry.images, tile.images),
      ("images", tile.images, IMAGES_MULTIPLE),
      ("rows", geometry.height, tile.rows),
      ("columns", geometry.width, tile.columns),
      ("channels", self.channels, tile.channels),
      ("blocks for the cores", parts, tile.cores),
    )
    if geometry.groups > 1 and tile.channels != self.channels // geometry.groups:
      raise ValueError(f"{tile.channels=} are not those of a group")
    if (
      geometry.ends_branch
      and self.direction == "forward"
      and not tile.split_channels
      and self.positions % (tile.cores * self.row_blocks)
    ):
      raise ValueError(f"{tile=}: cores share an image, of whose results there is a mean")
    if self.vmem_bytes > VMEM_BYTES:
      raise ValueError(f"{tile=}: {self.vmem_bytes} bytes of VMEM are more than {VMEM_BYTES}")

  @property
  def channels(self) -> int:
    """That are cut into blocks."""
    forward = self.direction == "forward"
    return self.geometry.out_channels if forward else self.geometry.in_channels

  @property
  def channel_blocks(self) -> int:
    """Of all cores."""
    return self.channels // self.tile.channels

  @property
  def row_blocks(self) -> int:
    """Of one image."""
    return self.geometry.height // self.tile.rows

  @property
  def positions(self) -> int:
    """Of all cores."""
    return self.geometry.images // self.tile.images * self.row_blocks

  @property
  def grid(self) -> tuple[int, int, int]:
    """Cores, channel blocks of a core, positions of a core."""
    cores = self.tile.cores
    if self.tile.split_channels:
      return cores, self.channel_blocks // cores, self.positions
    return cores, self.channel_blocks, self.positions // cores

  def at(self, core, channel, position):
    """Indices of the blocks of channels, images and rows at a place of the grid."""
    if self.tile.split_channels:
      channel = core * self.grid[1] + channel
    else:
      position = core * self.grid[2] + position
    return channel, *(op(position, self.row_blocks) for op in (jax.lax.div, jax.lax.rem))

  @property
  def block_inputs(self) -> int:
    """Input channels of a block."""
    forward = self.direction == "forward"
    return self.geometry.group_inputs if forward else self.tile.channels

  @property
  def block_outputs(self) -> int:
    """Output channels of a block."""
    forward = self.direction == "forward"
    return self.tile.channels if forward else self.geometry.group_outputs

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Of the input's block."""
    g, tile = self.geometry, self.tile
    return tile.rows, g.row_phases, g.width, g.column_phases, tile.images, self.block_inputs

  @property
  def input_halo_shape(self) -> tuple[int, ...]:
    """Of a block with the one row, of the first phase, before or after an input's block."""
    return 1, 1, *self.input_shape[2:]

  @property
  def result_halo_shape(self) -> tuple[int, ...]:
    """Of a block with the one row before or after a result's block."""
    return 1, *self.result_shape[1:]

  @property
  def result_shape(self) -> tuple[int, ...]:
    """Of the result's block."""
    g, tile = self.geometry, self.tile
    return tile.rows, g.width, g.outputs, tile.images, self.block_outputs

  @property
  def image_shape(self) -> tuple[int, int]:
    """Of a block with one value for each image and output channel."""
    return self.tile.images, self.block_outputs

  @property
  def filter_shape(self) -> tuple[int, ...]:
    """Of the weights' block."""
    return len(self.geometry.taps), self.block_inputs, self.block_outputs

  @property
  def activated_shape(self) -> tuple[int, ...]:
    """Scratch: the activated, pooled input, in tiles of lanes; forward with a border."""
    g, tile = self.geometry, self.tile
    border = g.before + g.after if self.direction == "forward" else 0
    (a, b), inputs = g.convolved_phases, math.ceil(self.block_inputs / LANES)
    return inputs, tile.rows + border, a, g.width + border, b, tile.images, LANES

  @property
  def cotangent_shape(self) -> tuple[int, ...]:
    """Scratch of the backward pass: the result's cotangent, in tiles of lanes with a border."""
    g, tile = self.geometry, self.tile
    border = g.before + g.after
    outputs = math.ceil(self.block_outputs / LANES)
    return outputs, tile.rows + border, g.width + border, g.outputs, tile.images, LANES

  @property
  def standardized_shape(self) -> tuple[int, ...]:
    """Scratch: the standardized weights, in squares for the matrix unit."""
    sides = (math.ceil(self.block_inputs / LANES), math.ceil(self.block_outputs / LANES))
    if self.direction == "backward":
      sides = sides[::-1]
    return len(self.geometry.taps), *sides, LANES, LANES

  @property
  def vmem_bytes(self) -> int:
    """Of a core: two of each block, so that copies overlap with work, and scratch."""
    itemsize, outputs = self.geometry.itemsize, self.block_outputs
    activations, parameters = [self.input_shape, self.result_shape], [self.filter_shape]
    vectors = [(SUBLANES, outputs)] * 3
    if self.direction == "forward":
      scratch = [self.activated_shape, self.standardized_shape]
      halo = self.input_halo_shape
      vectors += [self.image_shape] * self.geometry.ends_branch
    else:
      inputs = 1 + self.geometry.returns_input
      activations += [self.input_shape] * inputs
      parameters += [self.filter_shape]
      scratch = [self.activated_shape, self.cotangent_shape, self.standardized_shape]
      halo = self.result_halo_shape
      vectors += [self.image_shape] * 2 * self.geometry.ends_branch
    if self.row_blocks > 1:
      activations += [halo] * (self.geometry.before + self.geometry.after)
    return (
      2 * sum(_tiled_bytes(shape, itemsize) for shape in activations)
      + 2 * sum(_tiled_bytes(shape, 4) for shape in [*parameters, *vectors])
      + sum(_tiled_bytes(shape, itemsize) for shape in scratch)
    )

  @property
  def products(self) -> int:
    """Matrix products of 16 pixels that the kernel writes out."""
    g, tile = self.geometry, self.tile
    pixels = tile.rows * g.width * tile.images // 16
    squares = math.prod(self.standardized_shape[:3])
    return pixels * squares * (1 if self.direction == "forward" else 2)


def _tiled_bytes(shape: tuple[int, ...], itemsize: int) -> int:
  *major, sublanes, lanes = shape
  whole = math.ceil(sublanes / SUBLANES) * SUBLANES * math.ceil(lanes / LANES) * LANES
  return math.prod(major) * whole * itemsize


def candidates(geometry: Geometry, direction: Direction, vmem_bytes: int) -> list[Blocks]:
  """Tiles whose blocks fit into so much VMEM and can be written out, the likely best first."""
  channels = geometry.out_channels if direction == "forward" else geometry.in_channels
  if geometry.groups > 1:
    widths: Iterable[int] = [channels // geometry.groups]
  else:
    widths = [n for n in divisors(channels) if n % LANES == 0 or n == channels]
  images_of_blocks = divisors(geometry.images, of=IMAGES_MULTIPLE)
  fitting: list[Blocks] = []
  for cores, width, split_channels, images in itertools.product(
    (2, 1), widths, (True, False), images_of_blocks
  ):
    if cores == 1 and fitting:
      break
    columns = sorted(divisors(geometry.width), key=lambda n: abs(images * n - PIXELS_AT_A_TIME))
    for columns_at_a_time in columns[:2]:
      tile = Tile(
        images=images,
        rows=1,
        columns=columns_at_a_time,
        channels=width,
        split_channels=split_channels,
        cores=cores,
      )
      by_rows = _by_rows(geometry, direction, tile)
      fitting += itertools.islice((one for one in by_rows if one.vmem_bytes <= vmem_bytes), 2)
  return sorted(fitting, key=_rank)


def _by_rows(geometry: Geometry, direction: Direction, tile: Tile) -> Iterator[Blocks]:
  """With as many rows in a block as fit, and fewer."""
  for rows in reversed(divisors(geometry.height)):
    try:
      blocks = Blocks(geometry, direction, dataclasses.replace(tile, rows=rows))
    except ValueError:
      continue
    if blocks.products <= PRODUCTS_MAX or rows == 1:
      yield blocks


def _rank(blocks: Blocks):
  tile, geometry = blocks.tile, blocks.geometry
  cores, channel_blocks, _ = blocks.grid
  return (
    # Without groups, activations are copied and worked on again for each channel block.
    (channel_blocks * cores if tile.split_channels else channel_blocks)
    if geometry.groups == 1
    else 0,
    abs(tile.images * tile.columns - PIXELS_AT_A_TIME),
    -blocks.products,
  )


@functools.cache
def choose(geometry: Geometry, direction: Direction) -> Blocks:
  """The tile of `tiles.json`, or the likely best one.

  Raises:
    NotImplementedError: no tile fits.
  """
  if tile := read_tiles(CHOSEN, Tile).get((geometry.name, direction)):
    return Blocks(geometry, direction, tile)
  for vmem_bytes in (VMEM_BYTES_PREFERRED, VMEM_BYTES):
    for blocks in candidates(geometry, direction, vmem_bytes):
      return blocks
  raise NotImplementedError("blocks that do not fit VMEM")
