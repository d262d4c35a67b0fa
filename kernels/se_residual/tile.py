"""Tiles of squeeze-excite's kernels: how their work is cut into the steps of a grid."""

import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Literal

from kernels.layout import LANES
from kernels.se_residual.problem import Problem
from kernels.tpu import IMAGES_MULTIPLE, VMEM_BYTES, check_multiples, divisors, read_tiles

Direction = Literal["forward", "backward"]
CORES = 2
BLOCK_BYTES_PREFERRED = 3 << 19
"""Size of a block whose copy comes close to HBM's bandwidth. With larger blocks, the first and the
last copy, during which nothing is computed, cost more time than the bandwidth saves."""
CHOSEN = pathlib.Path(__file__).parent / "tiles.json"
"""File of the tiles that a sweep found to be the best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """The division of a kernel's work into blocks of images, channels and rows.

  These are the axes of the grid, in this order; cores share the first two.

  Attributes:
    rows: number of rows in a block, in pixels.
    images: number of images in a block.
    channels: number of channels in a block.
  """

  rows: int
  images: int
  channels: int


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of a kernel's grid.

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
    check_multiples(
      ("rows", self.problem.height, self.tile.rows),
      ("images", self.problem.images, self.tile.images),
      ("images", self.tile.images, IMAGES_MULTIPLE),
      ("channels", self.problem.channels, self.tile.channels),
      ("channels", self.tile.channels, LANES),
    )
    if self.vmem_bytes > VMEM_BYTES:
      raise ValueError(f"{self.tile}: {self.vmem_bytes} bytes of VMEM are more than {VMEM_BYTES}")

  @property
  def grid(self) -> tuple[int, int, int]:
    """Number of blocks of images, of channels, and of rows."""
    return (
      self.problem.images // self.tile.images,
      self.problem.channels // self.tile.channels,
      self.problem.height // self.tile.rows,
    )

  @property
  def wide_shape(self) -> tuple[int, int, int, int]:
    """Shape of a block of activations."""
    return self.tile.rows, self.problem.width, self.tile.images, self.tile.channels

  @property
  def narrow_shape(self) -> tuple[int, int]:
    """Shape of a block with one value for each image and channel."""
    return self.tile.images, self.tile.channels

  @property
  def wide_bytes(self) -> int:
    """Size of a block of activations."""
    return math.prod(self.wide_shape) * self.problem.itemsize

  @property
  def vmem_bytes(self) -> int:
    """VMEM needed per core: two of each block, so that copies overlap with work."""
    # Forward: branch, shortcut, result; scale. Backward: cotangent, branch; two kinds of sums.
    wide, narrow = (3, 1) if self.direction == "forward" else (2, 2)
    return 2 * (wide * self.wide_bytes + narrow * 4 * math.prod(self.narrow_shape))


def candidates(problem: Problem, direction: Direction) -> list[Blocks]:
  """Returns blocks that fit VMEM, the likely best first."""
  fitting = []
  for rows, images, channels in itertools.product(
    divisors(problem.height),
    divisors(problem.images, of=IMAGES_MULTIPLE),
    divisors(problem.channels, of=LANES),
  ):
    tile = Tile(rows=rows, images=images, channels=channels)
    try:
      fitting.append(Blocks(problem, direction, tile))
    except ValueError:
      continue
  return sorted(fitting, key=_rank)


def _rank(blocks: Blocks):
  images, channels, _ = blocks.grid
  too_long = blocks.wide_bytes > BLOCK_BYTES_PREFERRED
  return (
    # 0 if all cores have the same amount of work.
    images * channels % CORES,
    too_long,
    # Few blocks of channels, then of images: what is contiguous in HBM is copied together.
    channels,
    images,
    blocks.wide_bytes if too_long else -blocks.wide_bytes,
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
  if tile := read_tiles(path, Problem, Tile).get((problem, direction)):
    return Blocks(problem, direction, tile)
  for blocks in candidates(problem, direction):
    return blocks
  raise NotImplementedError("blocks that do not fit VMEM")
