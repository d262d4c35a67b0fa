"""How the optimizer's kernel for one large parameter cuts it into the steps of a grid."""

import dataclasses
import functools
import pathlib

from kernels.tpu import LANES, SUBLANES, VMEM_BYTES, check_multiples, divisors, read_tiles

CHUNK_ROWS_PREFERRED = 40
"""With more, vectors of three arrays are spilled."""
CHUNK_ROWS_MAX = 128
CHOSEN = pathlib.Path(__file__).parent / "tiles.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """The grid is [blocks of columns, blocks of rows].

  Attributes:
    rows: of a block, which has the width of the lanes.
    chunk_rows: that are worked on at a time.
  """

  rows: int
  chunk_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
  """What the kernel is given: a parameter as a matrix whose columns are units.

  Attributes:
    rows: weights of a unit.
    columns: units; where nothing is clipped, just columns.
    clips: by the norms of whole units.
    gradient_itemsize: bytes of a gradient's element.
    has_average: there is a moving average.
  """

  rows: int
  columns: int
  clips: bool
  gradient_itemsize: int = 4
  has_average: bool = False

  @property
  def label(self) -> str:
    """Describes the problem in a table."""
    return (
      f"{self.rows}x{self.columns}"
      + ("" if self.clips else " not clipped")
      + (" with average" if self.has_average else "")
      + f", gradient {self.gradient_itemsize} bytes"
    )

  @property
  def tile_rows(self) -> int:
    """Rows that fill the sublanes, which hold 32 bits, in all arrays."""
    return SUBLANES * 4 // self.gradient_itemsize


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of the kernel's grid.

  Attributes:
    matrix: the work.
    tile: even parts of it.

  Raises:
    ValueError: the tile does not divide the matrix, cuts units that are clipped, or its blocks do
      not fit VMEM.
  """

  matrix: Matrix
  tile: Tile

  def __post_init__(self):
    matrix, tile = self.matrix, self.tile
    check_multiples(
      ("rows", matrix.rows, tile.rows),
      ("rows of a block", tile.rows, tile.chunk_rows),
      ("rows of a chunk", tile.chunk_rows, matrix.tile_rows),
    )
    if matrix.clips and tile.rows != matrix.rows:
      raise ValueError(f"{tile=}: a unit of {matrix.rows} rows is cut")
    if self.vmem_bytes > VMEM_BYTES:
      raise ValueError(f"{tile=}: {self.vmem_bytes} bytes of VMEM are more than {VMEM_BYTES}")

  @property
  def grid(self) -> tuple[int, int]:
    """Blocks of columns, of which the last one may reach over the edge, and of rows."""
    return -(-self.matrix.columns // LANES), self.matrix.rows // self.tile.rows

  @property
  def vmem_bytes(self) -> int:
    """Of a core: two of each block, so that copies overlap with work."""
    changed = 3 if self.matrix.has_average else 2
    element_bytes = 4 * 2 * changed + self.matrix.gradient_itemsize
    return 2 * LANES * (self.tile.rows * element_bytes + 4 * SUBLANES)


def candidates(matrix: Matrix) -> list[Blocks]:
  """Tiles whose blocks fit VMEM, the likely best first."""
  fitting = []
  for rows in [matrix.rows] if matrix.clips else divisors(matrix.rows, of=matrix.tile_rows):
    for chunk_rows in divisors(rows, of=matrix.tile_rows):
      if chunk_rows > CHUNK_ROWS_MAX:
        break
      try:
        fitting.append(Blocks(matrix, Tile(rows=rows, chunk_rows=chunk_rows)))
      except ValueError:
        continue
  return sorted(fitting, key=_rank)


def _rank(blocks: Blocks):
  tile = blocks.tile
  spills = tile.chunk_rows > CHUNK_ROWS_PREFERRED
  return -tile.rows, spills, tile.chunk_rows if spills else -tile.chunk_rows


@functools.cache
def choose(matrix: Matrix) -> Blocks:
  """The tile of `tiles.json`, or the likely best one.

  Raises:
    NotImplementedError: no tile fits.
  """
  if tile := read_tiles(CHOSEN, Matrix, Tile).get((matrix, "update")):
    return Blocks(matrix, tile)
  for blocks in candidates(matrix):
    return blocks
  raise NotImplementedError("units that do not fit VMEM")
