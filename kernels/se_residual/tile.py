"""How the kernels of squeeze-excite cut their work into the steps of a grid."""

import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Literal

from kernels.tpu import (
  IMAGES_MULTIPLE,
  LANES,
  VMEM_BYTES,
  check_multiples,
  divisors,
  read_tiles,
)

Direction = Literal["forward", "backward"]
CORES = 2
BLOCK_BYTES_PREFERRED = 3 << 19
"""Long copies come close to HBM's bandwidth; of longer ones, the first and the last one, behind
which nothing is computed, take more than that gains."""
CHOSEN = pathlib.Path(__file__).parent / "tiles.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """The grid is [blocks of images, blocks of channels, blocks of rows]; cores share the first two.

  Attributes:
    rows: of a block, in pixels.
    images: of a block.
    channels: of a block.
  """

  rows: int
  images: int
  channels: int


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of a kernel's grid.

  Attributes:
    shape: of the branch, [h, w, n, c].
    itemsize: bytes of an activation.
    direction: of the pass.
    tile: even parts of the work.

  Raises:
    ValueError: the tile does not divide the work, or its blocks do not fit VMEM.
  """

  shape: tuple[int, int, int, int]
  itemsize: int
  direction: Direction
  tile: Tile

  def __post_init__(self):
    height, _, images, channels = self.shape
    check_multiples(
      ("rows", height, self.tile.rows),
      ("images", images, self.tile.images),
      ("images", self.tile.images, IMAGES_MULTIPLE),
      ("channels", channels, self.tile.channels),
      ("channels", self.tile.channels, LANES),
    )
    if self.vmem_bytes > VMEM_BYTES:
      raise ValueError(f"{self.tile}: {self.vmem_bytes} bytes of VMEM are more than {VMEM_BYTES}")

  @property
  def grid(self) -> tuple[int, int, int]:
    """Blocks of images, channels and rows."""
    height, _, images, channels = self.shape
    return (
      images // self.tile.images,
      channels // self.tile.channels,
      height // self.tile.rows,
    )

  @property
  def wide_shape(self) -> tuple[int, int, int, int]:
    """Of a block of activations."""
    return self.tile.rows, self.shape[1], self.tile.images, self.tile.channels

  @property
  def narrow_shape(self) -> tuple[int, int]:
    """Of a block with one value for each image and channel."""
    return self.tile.images, self.tile.channels

  @property
  def wide_bytes(self) -> int:
    """Of a block of activations."""
    return math.prod(self.wide_shape) * self.itemsize

  @property
  def vmem_bytes(self) -> int:
    """Of a core: two of each block, so that copies overlap with work."""
    # Branch, shortcut, result and scale; backward cotangent, branch, and sums of two kinds.
    wide, narrow = (3, 1) if self.direction == "forward" else (2, 2)
    return 2 * (wide * self.wide_bytes + narrow * 4 * math.prod(self.narrow_shape))


def candidates(
  shape: tuple[int, int, int, int], itemsize: int, direction: Direction
) -> list[Blocks]:
  """Tiles whose blocks fit VMEM, the likely best first."""
  height, _, images, channels = shape
  fitting = []
  for rows, some_images, some_channels in itertools.product(
    divisors(height), divisors(images, of=IMAGES_MULTIPLE), divisors(channels, of=LANES)
  ):
    tile = Tile(rows=rows, images=some_images, channels=some_channels)
    try:
      fitting.append(Blocks(shape, itemsize, direction, tile))
    except ValueError:
      continue
  return sorted(fitting, key=_rank)


def _rank(blocks: Blocks):
  images, channels, _ = blocks.grid
  too_long = blocks.wide_bytes > BLOCK_BYTES_PREFERRED
  return (
    # All cores have as much to do.
    images * channels % CORES,
    too_long,
    # What is next to each other in HBM is copied together.
    channels,
    images,
    blocks.wide_bytes if too_long else -blocks.wide_bytes,
  )


@functools.cache
def choose(shape: tuple[int, int, int, int], itemsize: int, direction: Direction) -> Blocks:
  """The tile of `tiles.json`, or the likely best one.

  Raises:
    NotImplementedError: no tile fits.
  """
  if tile := read_tiles(CHOSEN, Tile).get((name(shape, itemsize), direction)):
    return Blocks(shape, itemsize, direction, tile)
  for blocks in candidates(shape, itemsize, direction):
    return blocks
  raise NotImplementedError("blocks that do not fit VMEM")


def name(shape: tuple[int, int, int, int], itemsize: int) -> str:
  """By which `tiles.json` knows the kernels of a shape."""
  return f"{'x'.join(map(str, shape))}, {itemsize} bytes"
