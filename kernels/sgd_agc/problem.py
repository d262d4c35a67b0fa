"""The problems that the kernels of SGD with AGC solve: one large parameter, or many small ones."""

import dataclasses
import math

from kernels.layout import LANES, is_stored_by_output, tile_rows

SMALL_ELEMENTS_MAX = 32_768
"""Largest size of a small filter or matrix; larger ones keep HBM busy on their own."""
SMALL_TRANSPOSED_ELEMENTS_MAX = 131_072
"""Largest size of a small matrix that is transposed in memory. More of them count as small because
the kernel of large parameters would not have their units as columns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """The update of one large parameter, as a matrix whose columns are units.

  Attributes:
    rows: number of weights in a unit.
    columns: number of units or, where nothing is clipped, merely of columns.
    clips: whether gradients are clipped by the norms of whole units.
    gradient_itemsize: bytes per element of the gradient.
    has_ema: whether there is a moving average.
  """

  rows: int
  columns: int
  clips: bool
  gradient_itemsize: int = 4
  has_ema: bool = False

  @property
  def label(self) -> str:
    """Describes the problem in a table."""
    return (
      f"{self.rows}x{self.columns}"
      + ("" if self.clips else " not clipped")
      + (" with moving average" if self.has_ema else "")
      + f", gradient {self.gradient_itemsize} bytes"
    )

  @property
  def tile_rows(self) -> int:
    """Number of rows that fill the sublanes, which hold 32 bits, in all arrays."""
    return tile_rows(self.gradient_itemsize)


def problem_of(
  shape: tuple[int, ...], *, clips: bool, gradient_itemsize: int, has_ema: bool
) -> Problem:
  """Returns the problem of one large parameter.

  Args:
    shape: shape of the parameter, HWIO or IO.
    clips: whether gradients are clipped.
    gradient_itemsize: bytes per element of the gradient; 2-byte gradients are widened to 4 bytes
      where their rows would not fill the sublanes (as with 1000 classes).
    has_ema: whether there is a moving average.

  Raises:
    NotImplementedError: the kernel does not cover the shape.
  """
  if len(shape) not in (2, 4):
    raise NotImplementedError("a parameter that is neither a matrix nor a filter")
  *inputs, columns = shape
  rows = math.prod(inputs)
  transposes = is_transposed(shape, clips=clips)
  if transposes:
    rows, columns = columns, rows
  problem = Problem(
    rows=rows,
    columns=columns,
    clips=clips,
    gradient_itemsize=gradient_itemsize,
    has_ema=has_ema,
  )
  if rows % problem.tile_rows:
    problem = dataclasses.replace(problem, gradient_itemsize=4)
  if rows % problem.tile_rows or (transposes and columns % LANES):
    raise NotImplementedError("rows or columns that do not fill tiles")
  return problem


def is_transposed(shape: tuple[int, ...], *, clips: bool) -> bool:
  """Returns whether the kernel of one large parameter reads the parameter transposed.

  XLA stores a matrix transposed if its columns do not fill the lanes. A parameter that is clipped
  must have its units as columns nevertheless.
  """
  return not clips and shape[-1] % LANES != 0


def is_small(shape: tuple[int, ...], stacked: bool) -> bool:
  """Returns whether a parameter is updated together with others by the kernel of small ones.

  Args:
    shape: shape of the parameter, which is a vector, a scalar, a filter or a matrix.
    stacked: whether the first axis counts parameters.
  """
  if len(shape) - stacked < 2:
    return True
  limit = SMALL_TRANSPOSED_ELEMENTS_MAX if is_small_transposed(shape) else SMALL_ELEMENTS_MAX
  return not stacked and math.prod(shape) <= limit


def is_small_transposed(shape: tuple[int, ...]) -> bool:
  """Returns whether the kernel of small parameters reads a matrix transposed, as XLA stores it."""
  return math.prod(shape[:-2]) == 1 and is_stored_by_output(shape)
