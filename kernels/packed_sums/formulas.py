"""Describes how parts of gradients lie in the arrays in which their sums travel.

Parts that travel together make one array, [steps, rows, 128]. A step holds one block of each part:
some of its leading indices or some of its rows, with all of its columns, each 128 of them below the
128 before.
"""

import dataclasses
import math
from typing import NamedTuple

from kernels.layout import LANES, tile_rows

STEPS_MAX = 16
STEP_BYTES_MAX = 512 << 10
"""Bytes of a step that HBM needs longer for than a core for the step's overhead."""


class Part(NamedTuple):
  """The part of a gradient that one device sums.

  Attributes:
    axis: axis of the gradient that is divided into parts; one of the last two.
    parts: number of parts.
    array: number of the packed array in which the part travels.
  """

  axis: int
  parts: int
  array: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
  """The blocks of one gradient.

  Attributes:
    whole: shape of the gradient, with its leading axes as one.
    part: shape of one part of it.
    block: shape of one step's block of a part.
    array: number of the packed array.
    first_row: first row of the block in a step of the packed array.
  """

  whole: tuple[int, int, int]
  part: tuple[int, int, int]
  block: tuple[int, int, int]
  array: int
  first_row: int

  @property
  def rows(self) -> int:
    """Returns the number of rows of the block in the packed array."""
    return math.prod(self.block) // LANES

  @property
  def part_axis(self) -> int:
    """Returns the axis of `whole` that is divided into parts."""
    return 1 if self.part[1] < self.whole[1] else 2

  @property
  def step_axis(self) -> int:
    """Returns the axis of a part that is divided into blocks."""
    return 0 if self.block[0] < self.part[0] else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """The layout of packed sums.

  Attributes:
    steps: number of steps.
    blocks: blocks of each gradient.
    rows: number of rows of a step of each packed array.
  """

  steps: int
  blocks: tuple[Block, ...]
  rows: tuple[int, ...]

  def packed_shape(self, array: int) -> tuple[int, int, int]:
    """Returns the shape of a packed array."""
    return self.steps, self.rows[array], LANES


def layout_of(
  shapes: tuple[tuple[int, ...], ...], parts: tuple[Part, ...], itemsize: int
) -> Layout:
  """Returns the layout of the sums of several gradients.

  Both cores of a chip should have equal numbers of steps. Of such divisions, it is the one with the
  fewest steps that are not too large.

  Args:
    shapes: shapes of the gradients.
    parts: what each is divided into.
    itemsize: bytes per element of a gradient.

  Raises:
    NotImplementedError: a part has no whole tiles of memory (see `covers`).
  """
  if not all(covers(shape, part, itemsize) for shape, part in zip(shapes, parts, strict=True)):
    raise NotImplementedError("parts of gradients that do not fill tiles")
  layouts = [
    layout
    for steps in range(1, STEPS_MAX + 1)
    if (layout := _layout(shapes, parts, itemsize, steps)) is not None
  ]

  def cost(layout: Layout) -> tuple[int, float]:
    step_bytes = sum(layout.rows) * LANES * itemsize
    # Two cores share the steps.
    return max(step_bytes, STEP_BYTES_MAX), math.ceil(layout.steps / 2) / layout.steps

  return min(layouts, key=cost)


def covers(shape: tuple[int, ...], part: Part, itemsize: int) -> bool:
  """Returns whether the parts of a gradient are whole tiles of memory.

  Args:
    shape: shape of the gradient.
    part: what it is divided into.
    itemsize: bytes per element of a gradient.
  """
  has_rows_of_columns = len(shape) >= 2 and part.axis >= len(shape) - 2
  return has_rows_of_columns and _is_tiled(
    _with_leading_axes_as_one(shape_of_part(shape, part)), itemsize
  )


def shape_of_part(shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
  """Returns the shape of one part of a gradient.

  Args:
    shape: shape of the gradient.
    part: what it is divided into.
  """
  return tuple(size // part.parts if i == part.axis else size for i, size in enumerate(shape))


def _with_leading_axes_as_one(shape: tuple[int, ...]) -> tuple[int, int, int]:
  return math.prod(shape[:-2]), *shape[-2:]


def _is_tiled(shape: tuple[int, int, int], itemsize: int) -> bool:
  return shape[1] % tile_rows(itemsize) == 0 and shape[2] % LANES == 0


def _layout(
  shapes: tuple[tuple[int, ...], ...], parts: tuple[Part, ...], itemsize: int, steps: int
) -> Layout | None:
  """Returns the layout with a number of steps; None if a part cannot be divided so."""
  blocks, rows = [], [0] * (1 + max(part.array for part in parts))
  for shape, part in zip(shapes, parts, strict=True):
    first, second, columns = of_part = _with_leading_axes_as_one(shape_of_part(shape, part))
    if first % steps == 0:
      block = first // steps, second, columns
    elif second % steps == 0 and _is_tiled((first, second // steps, columns), itemsize):
      block = first, second // steps, columns
    else:
      return None
    blocks.append(
      Block(
        whole=_with_leading_axes_as_one(shape),
        part=of_part,
        block=block,
        array=part.array,
        first_row=rows[part.array],
      )
    )
    rows[part.array] += blocks[-1].rows
  return Layout(steps=steps, blocks=tuple(blocks), rows=tuple(rows))
