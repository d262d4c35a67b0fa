"""Channels that fill half of their last tile are packed for the matrix unit.

Of 192 channels, one tile of 128 is full and one is half empty, and so is what is multiplied with
it. In a 3x3 convolution, neighboring pixels can share that tile:

- If two pixels share the last tile of an operand, the three columns of a filter need two products
  with it instead of three.
- If two pixels, a pair, share the last tile of the results, four columns of operands contribute to
  it, where three contribute to each of two half empty tiles.

From 192 to 192 channels, that is 24 products for a pixel instead of 36: 15 for the full tile of its
results, and 18 for the tile that two pixels share.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from kernels.layout import LANES
from kernels.scaled_ws_conv.problem import Problem

HALF = LANES // 2
SHIFTS = (-1, 0, 1)
"""Rows or columns from a result to the operands of a 3x3 convolution."""


class Term(NamedTuple):
  """An operand of one of the products that add up to a tile of results.

  Attributes:
    down: rows from the result to the operand.
    right: columns from the result, or from the first pixel of a pair, to the operand, or to the
      first of the two pixels that share its tile.
    tile: tile of the operand's channels.
  """

  down: int
  right: int
  tile: int


class Half(NamedTuple):
  """Half of a tile of operands or results.

  Attributes:
    lanes: where it is in the tile.
    channel: first of its channels.
    right: columns from the tile's first pixel to its own.
  """

  lanes: slice
  channel: int
  right: int


class Part(NamedTuple):
  """A quarter of the square of weights of a product: one tap for half tiles on both sides.

  Attributes:
    operand: half of the operand's tile.
    result: half of the result's tile.
    down: rows from the result's pixel to the operand's.
    right: columns from the result's pixel to the operand's.
  """

  operand: Half
  result: Half
  down: int
  right: int


def can_pack(problem: Problem) -> bool:
  """Returns whether the kernels can pack a problem's channels, and save products by it."""
  halves = {channels % LANES for channels in (problem.in_channels, problem.out_channels)}
  return (
    problem.standardized
    and [tap.shift for tap in problem.taps] == list(itertools.product(SHIFTS, repeat=2))
    and problem.phases == [(0, 0)]
    and problem.outputs == problem.groups == 1
    and not (problem.ends_branch or problem.returns_input)
    and problem.width % 2 == 0
    and halves in ({HALF}, {0, HALF})
  )


def tap(down: int, right: int) -> int:
  """Returns the index of the tap with a shift."""
  return SHIFTS.index(down) * len(SHIFTS) + SHIFTS.index(right)


def terms(channels: int, *, of_pairs: bool) -> list[Term]:
  """Returns the operands that contribute to a tile of results.

  Args:
    channels: number of the operands' channels.
    of_pairs: whether the two pixels of a pair share the tile of results.
  """
  full = channels // LANES
  columns = (*SHIFTS, 2) if of_pairs else SHIFTS
  found = []
  for down in SHIFTS:
    found += [Term(down, *place) for place in itertools.product(columns, range(full))]
    if channels % LANES:
      # Two neighbors of two pixels are all four columns.
      found += [Term(down, -1, full), Term(down, 1, full)]
  return found


def halves(tile: int, channels: int) -> list[Half]:
  """Returns the halves of a tile of channels: of one pixel, or the last half of each of two."""
  shared = tile == channels // LANES
  return [
    Half(slice(lane, lane + HALF), tile * LANES + (0 if shared else lane), shared * i)
    for i, lane in enumerate((0, HALF))
  ]


def squares(operand_channels: int, result_channels: int) -> Iterator[list[Part]]:
  """Yields the parts of each square of weights; what they leave out is zero.

  The squares are in the order of `terms`, for one tile of results after the other.
  """
  for tile in range(-(-result_channels // LANES)):
    of_pairs = tile == result_channels // LANES
    for term in terms(operand_channels, of_pairs=of_pairs):
      yield parts(term, halves(term.tile, operand_channels), halves(tile, result_channels))


def parts(term: Term, operands: list[Half], results: list[Half]) -> list[Part]:
  """Returns the taps by which the halves of a term's operand contribute to those of a result."""
  found = (
    Part(operand, result, term.down, term.right + operand.right - result.right)
    for operand, result in itertools.product(operands, results)
  )
  return [part for part in found if part.right in SHIFTS]


def products(operand_channels: int, result_channels: int) -> int:
  """Returns the number of products for a pair of pixels."""
  full, shared = divmod(result_channels, LANES)
  of_one, of_pair = (len(terms(operand_channels, of_pairs=pairs)) for pairs in (False, True))
  return 2 * full * of_one + (of_pair if shared else 0)
