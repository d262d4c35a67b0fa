"""Tiles of the convolution kernels: how their work is cut into the steps of a grid."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kernels.layout import LANES, SUBLANES
from kernels.scaled_ws_conv import packing
from kernels.scaled_ws_conv.problem import Problem
from kernels.tpu import IMAGES_MULTIPLE, VMEM_BYTES, check_multiples, divisors, read_tiles

Direction = Literal["forward", "backward"]
VMEM_BYTES_PREFERRED = 12 << 20
"""VMEM that blocks may take if no sweep has tried their tile. The compiler keeps up to 5 MiB of
spilled registers in the rest, and some kernels with larger blocks do not compile."""
PRODUCTS_MAX = 3_600
"""Largest number of 128 x 128 x 16 matrix products that are unrolled in a kernel."""
PIXELS_AT_A_TIME = 224
"""Number of pixels to compute at a time: enough to keep the matrix units busy, and few enough that
their results fit the registers."""
CHOSEN = pathlib.Path(__file__).parent / "tiles.json"
"""File of the tiles that a sweep found to be the best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """The division of a kernel's work; the grid is [cores, channel blocks and positions of a core].

  A position is a block of rows of a block of images; all positions of a channel block share its
  weights.

  Attributes:
    images: number of images in a block.
    rows: number of rows in a block, in pixels of the result.
    columns: number of columns of the result that are computed at a time.
    channels: number of channels in a block: outputs in the forward pass, inputs in the backward
      pass; the channels of one group if there are several groups.
    split_channels: whether the cores share the channel blocks rather than the positions.
    cores: number of cores that work at the same time.
    packed: whether pixels share the last, half empty tiles of channels (`packing`), and rows stay
      in VMEM from one step to the next.
  """

  images: int
  rows: int
  columns: int
  channels: int
  split_channels: bool
  cores: int = 2
  packed: bool = False


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of a pass's grid.

  Attributes:
    problem: what the kernel computes.
    direction: direction of the pass.
    tile: how the work is cut into equal parts.

  Raises:
    ValueError: the tile does not divide the work, or its blocks do not fit VMEM.
  """

  problem: Problem
  direction: Direction
  tile: Tile

  def __post_init__(self):
    problem, tile = self.problem, self.tile
    parts = self.channel_blocks if tile.split_channels else self.positions
    check_multiples(
      ("images", problem.images, tile.images),
      ("images", tile.images, IMAGES_MULTIPLE),
      ("rows", problem.height, tile.rows),
      ("columns", problem.width // 2 if tile.packed else problem.width, tile.columns),
      ("channels", self.channels, tile.channels),
      ("blocks for the cores", parts, tile.cores),
    )
    if problem.groups > 1 and tile.channels != self.channels // problem.groups:
      raise ValueError(
        f"{tile.channels=}: must be the {self.channels // problem.groups} of a group"
      )
    if tile.packed:
      if not packing.can_pack(problem):
        raise ValueError(f"{tile=}: cannot pack {problem.label}")
      if tile.split_channels or tile.channels != self.channels:
        raise ValueError(f"{tile=}: packs some of the channels")
      if self.positions % (tile.cores * self.row_steps):
        raise ValueError(f"{tile=}: cores share an image, whose rows follow one another")
    if problem.sums_input:
      if self.direction == "forward" and self.channel_blocks > 1:
        raise ValueError(f"{tile=}: each block of channels would add up the input again")
      if self.image_parts > 1 and tile.images < problem.images:
        raise ValueError(f"{tile=}: cores share some of the images, over which there are sums")
    if (
      problem.ends_branch
      and self.direction == "forward"
      and not tile.split_channels
      and self.positions % (tile.cores * self.row_blocks)
    ):
      raise ValueError(f"{tile=}: cores share an image, over whose results there is a mean")
    if self.vmem_bytes > VMEM_BYTES:
      raise ValueError(f"{tile=}: {self.vmem_bytes} bytes of VMEM are more than {VMEM_BYTES}")

  @property
  def channels(self) -> int:
    """Number of channels that are cut into blocks."""
    forward = self.direction == "forward"
    return self.problem.out_channels if forward else self.problem.in_channels

  @property
  def channel_blocks(self) -> int:
    """Number of channel blocks over all cores."""
    return self.channels // self.tile.channels

  @property
  def row_blocks(self) -> int:
    """Number of row blocks per image."""
    return self.problem.height // self.tile.rows

  @property
  def row_steps(self) -> int:
    """Number of steps for the rows of an image: if packed, results come one step after the rows."""
    return self.row_blocks + self.tile.packed

  @property
  def positions(self) -> int:
    """Number of positions over all cores."""
    return self.problem.images // self.tile.images * self.row_steps

  @property
  def has_neighbors(self) -> bool:
    """Tells whether blocks with the rows above and below are operands of the kernel."""
    return self.row_blocks > 1 and not self.tile.packed

  @property
  def grid(self) -> tuple[int, int, int]:
    """Number of cores, of channel blocks per core, and of positions per core."""
    cores = self.tile.cores
    if self.tile.split_channels:
      return cores, self.channel_blocks // cores, self.positions
    return cores, self.channel_blocks, self.positions // cores

  def at(self, core, channel, position):
    """Returns the indices of the blocks of channels, images and rows at a place of the grid.

    If packed, that of rows is the step's: see `arriving` and `finished`.
    """
    if self.tile.split_channels:
      channel = core * self.grid[1] + channel
    else:
      position = core * self.grid[2] + position
    return channel, *(op(position, self.row_steps) for op in (jax.lax.div, jax.lax.rem))

  def arriving(self, row):
    """Returns the index of the rows' block of the products' operands that a step reads."""
    return jnp.minimum(row, self.row_blocks - 1) if self.tile.packed else row

  def finished(self, row):
    """Returns the index of the rows' block of the products' results that a step writes."""
    return jnp.maximum(row - 1, 0) if self.tile.packed else row

  @property
  def block_inputs(self) -> int:
    """Number of input channels in a block."""
    forward = self.direction == "forward"
    return self.problem.group_inputs if forward else self.tile.channels

  @property
  def block_outputs(self) -> int:
    """Number of output channels in a block."""
    forward = self.direction == "forward"
    return self.tile.channels if forward else self.problem.group_outputs

  @property
  def input_columns(self) -> tuple[int, int]:
    """Columns of the input and their phases or, if packed, pairs of columns and their two."""
    problem = self.problem
    return (problem.width // 2, 2) if self.tile.packed else (problem.width, problem.column_phases)

  @property
  def result_columns(self) -> tuple[int, int]:
    """Columns of the result and its outputs or, if packed, pairs of columns and their two."""
    problem = self.problem
    return (problem.width // 2, 2) if self.tile.packed else (problem.width, problem.outputs)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of the input's block."""
    phases, tile = self.problem.row_phases, self.tile
    return tile.rows, phases, *self.input_columns, tile.images, self.block_inputs

  @property
  def input_halo_shape(self) -> tuple[int, ...]:
    """Shape of the block that holds the row (of one phase) before or after an input's block."""
    return 1, 1, *self.input_shape[2:]

  @property
  def result_halo_shape(self) -> tuple[int, ...]:
    """Shape of the block that holds the row before or after a result's block."""
    return 1, *self.result_shape[1:]

  @property
  def result_shape(self) -> tuple[int, ...]:
    """Shape of the result's block."""
    return self.tile.rows, *self.result_columns, self.tile.images, self.block_outputs

  @property
  def input_image_shape(self) -> tuple[int, int]:
    """Shape of a block with one value for each image and input channel."""
    return self.tile.images, self.block_inputs

  @property
  def image_parts(self) -> int:
    """Number of arrays in which cores write sums over space: one each if they share images."""
    shared = not self.tile.split_channels and self.grid[2] % self.row_steps
    return self.tile.cores if shared else 1

  @property
  def image_shape(self) -> tuple[int, int]:
    """Shape of a block with one value for each image and output channel."""
    return self.tile.images, self.block_outputs

  @property
  def filter_shape(self) -> tuple[int, ...]:
    """Shape of the weights' block."""
    return len(self.problem.taps), self.block_inputs, self.block_outputs

  @property
  def rows_shape(self) -> tuple[int, ...]:
    """Shape of the block of filters that arrive standardized, in rows."""
    inputs = math.ceil(self.block_inputs / LANES)
    return len(self.problem.taps), inputs, self.block_outputs, LANES

  @property
  def squares_shape(self) -> tuple[int, ...]:
    """Shape of the filters that the kernel standardizes, in squares for the matrix unit."""
    sides = (math.ceil(self.block_inputs / LANES), math.ceil(self.block_outputs / LANES))
    return len(self.problem.taps), *sides, LANES, LANES

  @property
  def operand_and_result_channels(self) -> tuple[int, int]:
    """Channels of what a pass multiplies by the weights, and of what it computes so."""
    problem = self.problem
    channels = problem.in_channels, problem.out_channels
    return channels if self.direction == "forward" else channels[::-1]

  @property
  def packed_squares_shape(self) -> tuple[int, int, int]:
    """Shape of the weights of all products, if packed."""
    return len(list(packing.squares(*self.operand_and_result_channels))), LANES, LANES

  @property
  def sums_shape(self) -> tuple[int, ...]:
    """Shape of the backward pass's sums, if the gradient of the filters is in rows."""
    problem = self.problem
    if not self.tile.packed:
      return self.squares_shape
    terms = packing.terms(problem.out_channels, of_pairs=False)
    return len(terms), problem.in_channels, LANES

  @property
  def activated_shape(self) -> tuple[int, ...]:
    """Shape of the scratch for the activated input, by lane tiles; with a border if forward."""
    problem, tile = self.problem, self.tile
    (a, b), inputs = problem.convolved_phases, math.ceil(self.block_inputs / LANES)
    if tile.packed:
      if self.direction == "forward":
        return self._window_shape
      return inputs, 2, tile.rows, problem.width // 2, tile.images, LANES
    border = problem.before + problem.after if self.direction == "forward" else 0
    return inputs, tile.rows + border, a, problem.width + border, b, tile.images, LANES

  @property
  def cotangent_shape(self) -> tuple[int, ...]:
    """Shape of the backward pass's scratch for the cotangent, by lane tiles, with a border."""
    problem, tile = self.problem, self.tile
    if tile.packed:
      return self._window_shape
    border = problem.before + problem.after
    outputs = math.ceil(self.block_outputs / LANES)
    return outputs, tile.rows + border, problem.width + border, problem.outputs, tile.images, LANES

  @property
  def _window_shape(self) -> tuple[int, ...]:
    """Shape of the window of operands of a packed kernel: see `packed_window`."""
    tile, (channels, _) = self.tile, self.operand_and_result_channels
    tiles, pairs = math.ceil(channels / LANES), self.problem.width // 2 + 1
    return tiles, 2 * tile.rows + 1, pairs, 2, tile.images, LANES

  @property
  def vmem_bytes(self) -> int:
    """VMEM needed per core: scratch, and two of each block, so that copies overlap with work."""
    itemsize, outputs = self.problem.itemsize, self.block_outputs
    standardized = self.problem.standardized
    activations, parameters = [self.input_shape, self.result_shape], []
    if not standardized:
      scratch = [self.squares_shape]
      parameters.append(self.filter_shape)
    else:
      # A block that changes needs two buffers, so that the next one is fetched during the work.
      scratch = [self.rows_shape] * min(2, self.grid[1])
    sums: list[tuple[int, ...]] = []
    vectors = [(SUBLANES, outputs)] * 3
    if self.tile.packed:
      scratch += [self.packed_squares_shape]
    if self.direction == "forward":
      scratch += [self.activated_shape]
      halo = self.input_halo_shape
      vectors += [self.image_shape] * self.problem.ends_branch
      vectors += [self.input_image_shape] * self.problem.sums_input
      activations += [self.input_shape] * 2 * self.problem.sums_input
    else:
      inputs = 1 + self.problem.returns_input + self.problem.sums_input
      activations += [self.input_shape] * inputs
      parameters += [self.rows_shape if standardized else self.filter_shape]
      sums = [self.sums_shape] if standardized else []
      scratch += [self.activated_shape, self.cotangent_shape]
      halo = self.result_halo_shape
      vectors += [self.image_shape] * 2 * self.problem.ends_branch
      vectors += [self.input_image_shape] * 2 * self.problem.sums_input
    if self.has_neighbors:
      activations += [halo] * (self.problem.before + self.problem.after)
    return (
      2 * sum(_tiled_bytes(shape, itemsize) for shape in activations)
      + 2 * sum(_tiled_bytes(shape, 4) for shape in [*parameters, *vectors])
      + sum(_tiled_bytes(shape, itemsize) for shape in scratch)
      + sum(_tiled_bytes(shape, 4) for shape in sums)
    )

  @property
  def parts(self) -> int:
    """Number of equal arrays in which the cores write what they do not share."""
    return 1 if self.tile.split_channels else self.tile.cores

  @property
  def part_bytes(self) -> int:
    """HBM bytes that it takes to add up the parts of the weights' gradient after the kernel.

    The kernel that differentiates the standardization of raw filters adds them up while reading.
    """
    if self.direction == "forward" or self.parts == 1 or not self.problem.standardized:
      return 0
    weights = len(self.problem.taps) * self.problem.group_inputs * self.problem.out_channels
    return (self.parts + 1) * 4 * weights

  @property
  def products(self) -> int:
    """Number of matrix products of 16 pixels that are unrolled in the kernel."""
    problem, tile = self.problem, self.tile
    pixels = tile.rows * problem.width * tile.images // 16
    if tile.packed:
      of_results = packing.products(*self.operand_and_result_channels) / 2
      of_weights = math.prod(self.sums_shape) / LANES**2
      return round(pixels * (of_results + of_weights * (self.direction == "backward")))
    squares = math.prod(self.squares_shape[:3])
    return pixels * squares * (1 if self.direction == "forward" else 2)


def _tiled_bytes(shape: tuple[int, ...], itemsize: int) -> int:
  *major, sublanes, lanes = shape
  whole = math.ceil(sublanes / SUBLANES) * SUBLANES * math.ceil(lanes / LANES) * LANES
  return math.prod(major) * whole * itemsize


def candidates(problem: Problem, direction: Direction, vmem_bytes: int) -> list[Blocks]:
  """Returns blocks that fit into `vmem_bytes` and can be unrolled, the likely best first."""
  channels = problem.out_channels if direction == "forward" else problem.in_channels
  if problem.groups > 1:
    widths: Iterable[int] = [channels // problem.groups]
  else:
    widths = [n for n in divisors(channels) if n % LANES == 0 or n == channels]
  images_of_blocks = divisors(problem.images, of=IMAGES_MULTIPLE)
  packed_or_not = (True, False) if packing.can_pack(problem) else (False,)
  fitting: list[Blocks] = []
  for cores, packed, width, split_channels, images in itertools.product(
    (2, 1), packed_or_not, widths, (True, False), images_of_blocks
  ):
    if cores == 1 and fitting:
      break
    at_a_time = divisors(problem.width // 2 if packed else problem.width)
    # A packed kernel has the results of fewer tiles to compute at a time, and these in more terms.
    pixels = PIXELS_AT_A_TIME * (1 + packed)
    columns = sorted(at_a_time, key=lambda n: abs(images * n - pixels))
    for columns_at_a_time in columns[:2]:
      tile = Tile(
        images=images,
        rows=1,
        columns=columns_at_a_time,
        channels=width,
        split_channels=split_channels,
        cores=cores,
        packed=packed,
      )
      by_rows = _by_rows(problem, direction, tile)
      fitting += itertools.islice((one for one in by_rows if one.vmem_bytes <= vmem_bytes), 2)
  return sorted(fitting, key=_rank)


def _by_rows(problem: Problem, direction: Direction, tile: Tile) -> Iterator[Blocks]:
  """Yields blocks with as many rows as fit, then with fewer."""
  for rows in reversed(divisors(problem.height)):
    try:
      blocks = Blocks(problem, direction, dataclasses.replace(tile, rows=rows))
    except ValueError:
      continue
    if blocks.products <= PRODUCTS_MAX or rows == 1:
      yield blocks


def _rank(blocks: Blocks):
  tile, problem = blocks.tile, blocks.problem
  cores, channel_blocks, _ = blocks.grid
  return (
    not tile.packed,
    # Without groups, each channel block copies and activates all of the input again.
    (channel_blocks * cores if tile.split_channels else channel_blocks)
    if problem.groups == 1
    else 0,
    abs(tile.images * tile.columns - PIXELS_AT_A_TIME),
    -blocks.products,
  )


@functools.cache
def choose(problem: Problem, direction: Direction, path: pathlib.Path = CHOSEN) -> Blocks:
  """Returns the blocks of the tile that a sweep has chosen, or of the likely best one.

  Args:
    problem: what the kernel computes.
    direction: direction of the pass.
    path: file of chosen tiles.

  Raises:
    NotImplementedError: no tile fits.
  """
  tiles = read_tiles(path, type(problem), Tile)
  # What is good for raw filters fits standardized ones, which take less memory, if no sweep has
  # found better.
  for known in (problem, dataclasses.replace(problem, standardized=False)):
    if tile := tiles.get((known, direction)):
      return Blocks(problem, direction, tile)
  for vmem_bytes in (VMEM_BYTES_PREFERRED, VMEM_BYTES):
    for blocks in candidates(problem, direction, vmem_bytes):
      return blocks
  raise NotImplementedError("blocks that do not fit VMEM")


class Passes(NamedTuple):
  """The blocks of both passes of one problem."""

  forward: Blocks
  backward: Blocks


def choose_both(problem: Problem, path: pathlib.Path = CHOSEN) -> Passes:
  """Returns what `choose` returns for each pass; raises what it raises."""
  return Passes(choose(problem, "forward", path), choose(problem, "backward", path))
