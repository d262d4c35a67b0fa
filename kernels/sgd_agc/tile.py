"""Tiles of SGD with AGC: the grid of one large parameter, and the calls that small ones share."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping

from kernels.layout import LANES, SUBLANES
from kernels.sgd_agc.problem import Problem
from kernels.tpu import VMEM_BYTES, check_multiples, divisors, read_tiles

CHUNK_ROWS_PREFERRED = 40
"""Largest number of rows in a chunk with which no vectors of its three arrays are spilled."""
CHUNK_ROWS_MAX = 128
SMALL_VMEM_BYTES = 10 << 20
"""VMEM for all arrays in one call with small parameters; the compiler needs some of the 16 MiB."""
SMALL_PARAMETERS_MAX = 128
"""Largest number of small parameters in a call: the kernel has unrolled code for each."""
CHOSEN = pathlib.Path(__file__).parent / "tiles.json"
"""File of the tiles that a sweep found to be the best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """The division of a kernel's work; the grid is [blocks of columns, blocks of rows].

  Attributes:
    rows: number of rows in a block, which is as wide as the lanes.
    chunk_rows: number of rows to compute at a time.
  """

  rows: int
  chunk_rows: int


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The blocks of the kernel's grid.

  Attributes:
    problem: what the kernel computes.
    tile: how the work is cut into equal parts.

  Raises:
    ValueError: the tile does not divide the matrix, cuts units that are clipped, or its blocks do
      not fit VMEM.
  """

  problem: Problem
  tile: Tile

  def __post_init__(self):
    problem, tile = self.problem, self.tile
    check_multiples(
      ("rows", problem.rows, tile.rows),
      ("rows of a block", tile.rows, tile.chunk_rows),
      ("rows of a chunk", tile.chunk_rows, problem.tile_rows),
    )
    if problem.clips and tile.rows != problem.rows:
      raise ValueError(f"{tile=}: a unit of {problem.rows} rows is cut")
    if self.vmem_bytes > VMEM_BYTES:
      raise ValueError(f"{tile=}: {self.vmem_bytes} bytes of VMEM are more than {VMEM_BYTES}")

  @property
  def grid(self) -> tuple[int, int]:
    """Number of column blocks, the last of which may reach beyond the edge, and of row blocks."""
    return -(-self.problem.columns // LANES), self.problem.rows // self.tile.rows

  @property
  def vmem_bytes(self) -> int:
    """VMEM needed per core: two of each block, so that copies overlap with work."""
    changed = 3 if self.problem.has_ema else 2
    element_bytes = 4 * 2 * changed + self.problem.gradient_itemsize
    return 2 * LANES * (self.tile.rows * element_bytes + 4 * SUBLANES)


def candidates(problem: Problem) -> list[Blocks]:
  """Returns blocks that fit VMEM, the likely best first."""
  fitting = []
  for rows in [problem.rows] if problem.clips else divisors(problem.rows, of=problem.tile_rows):
    for chunk_rows in divisors(rows, of=problem.tile_rows):
      if chunk_rows > CHUNK_ROWS_MAX:
        break
      try:
        fitting.append(Blocks(problem, Tile(rows=rows, chunk_rows=chunk_rows)))
      except ValueError:
        continue
  return sorted(fitting, key=_rank)


def _rank(blocks: Blocks):
  tile = blocks.tile
  spills = tile.chunk_rows > CHUNK_ROWS_PREFERRED
  return -tile.rows, spills, tile.chunk_rows if spills else -tile.chunk_rows


@functools.cache
def choose(problem: Problem, path: pathlib.Path = CHOSEN) -> Blocks:
  """Returns the blocks of the tile that a sweep has chosen, or of the likely best one.

  Args:
    problem: what the kernel computes.
    path: file of chosen tiles.

  Raises:
    NotImplementedError: no tile fits.
  """
  if tile := read_tiles(path, Problem, Tile).get((problem, "update")):
    return Blocks(problem, tile)
  for blocks in candidates(problem):
    return blocks
  raise NotImplementedError("units that do not fit VMEM")


def calls_of_small(shapes: Mapping[str, tuple[int, ...]], *, arrays: int) -> list[list[str]]:
  """Divides small parameters among calls of their kernel, each of which fits VMEM.

  Args:
    shapes: shapes of the parameters, by name.
    arrays: number of arrays that the kernel holds for each parameter, all of the same shape.

  Returns:
    The names of each call's parameters, in order.

  Raises:
    NotImplementedError: one parameter alone does not fit VMEM.
  """
  calls: list[list[str]] = []
  total = 0
  for name, shape in shapes.items():
    own = arrays * padded_bytes(shape)
    if own > SMALL_VMEM_BYTES:
      raise NotImplementedError("a small parameter that does not fit VMEM")
    if not calls or total + own > SMALL_VMEM_BYTES or len(calls[-1]) == SMALL_PARAMETERS_MAX:
      calls.append([])
      total = 0
    calls[-1].append(name)
    total += own
  return calls


def padded_bytes(shape: tuple[int, ...]) -> int:
  """Returns the bytes of a float32 array in whole tiles of VMEM."""
  if len(shape) < 2:
    tile = SUBLANES * LANES
    return 4 * tile * math.ceil(math.prod(shape) / tile)
  *major, sublanes, lanes = shape
  tiles = math.ceil(sublanes / SUBLANES) * math.ceil(lanes / LANES)
  return 4 * SUBLANES * LANES * math.prod(major) * tiles
