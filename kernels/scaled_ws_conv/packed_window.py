"""Both kernels of a packed convolution make squares of weights and move a window over the rows.

The operands of the last rows stay in VMEM from one step of the grid to the next, so that each row
is read and activated once. The window holds the row above the results' block, that block, and the
block below it, of which only the first row is needed yet. Its axes are k (tiles of channels), h
(rows), p and e (pairs of columns, and the two columns of a pair), n (images) and 128 channels. It
begins with a column of zeros, so a pair of the window is the second column of a pair of results and
the first of the next. In a shared tile, each column has the last channels of its own pixel and,
after them, of the pixel to the right.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.layout import LANES
from kernels.scaled_ws_conv import packing
from kernels.scaled_ws_conv.packing import HALF
from kernels.scaled_ws_conv.problem import lane_tiles
from kernels.scaled_ws_conv.tile import Blocks


def write_squares(rows_ref, squares_ref, blocks: Blocks) -> None:
  """Writes the weights of all products, from filters in rows.

  Args:
    rows_ref: standardized filters, [t, k, o, 128].
    squares_ref: [products, 128, 128], with output channels before input channels.
    blocks: blocks of the pass.
  """
  squares_ref[...] = jnp.zeros_like(squares_ref)
  forward = blocks.direction == "forward"
  for square, parts in enumerate(packing.squares(*blocks.operand_and_result_channels)):
    for part in parts:
      operand, result = part.operand, part.result
      inputs, outputs = (operand, result) if forward else (result, operand)
      # Forward, a tap's shift leads from result to operand; backward, from operand to result.
      sign = 1 if forward else -1
      tap = packing.tap(sign * part.down, sign * part.right)
      k, lane = divmod(inputs.channel, LANES)
      squares_ref[square, outputs.lanes, inputs.lanes] = rows_ref[
        tap, k, outputs.channel : outputs.channel + HALF, lane : lane + HALF
      ]


def write_row(window_ref, row: int, column: int, values: Float[Array, "p n c"]) -> None:
  """Writes the first (0) or second (1) columns of a row's pairs into the window."""
  pairs = len(values)
  for k, lanes in enumerate(lane_tiles(values.shape[-1])):
    tile = values[..., lanes].astype(window_ref.dtype)
    width = tile.shape[-1]
    window_ref[k, row, column : column + pairs, 1 - column, :, :width] = tile
    if width == HALF:
      window_ref[k, row, :pairs, column, :, HALF:] = tile


def move_up(window_ref, rows: int) -> None:
  """Moves all rows of the window up by a block of some rows."""
  for row in range(rows + 1):
    window_ref[:, row] = window_ref[:, row + rows]


def pairs_of_rows(blocks: Blocks) -> Iterator[tuple[int, slice]]:
  """Yields a row of the block of results and some of its pairs of columns, in order."""
  tile = blocks.tile
  for row, start in itertools.product(
    range(tile.rows), range(0, blocks.problem.width // 2, tile.columns)
  ):
    yield row, slice(start, start + tile.columns)


def reached(
  window_ref, term: packing.Term, rows: slice, pairs: slice, column: int
) -> Float[Array, "pixels 128"]:
  """Returns a term's operands for results in some rows and in columns 0 or 1 of some pairs."""
  moved_rows = slice(1 + rows.start + term.down, 1 + rows.stop + term.down)
  moved, column = divmod(1 + column + term.right, 2)
  moved_pairs = slice(pairs.start + moved, pairs.stop + moved)
  return window_ref[term.tile, moved_rows, moved_pairs, column].reshape(-1, LANES)


def sums(
  window_ref, squares_ref, blocks: Blocks, row: int, pairs: slice, bias_ref
) -> Iterator[tuple[int, slice, Float[Array, "p n c"]]]:
  """Yields columns 0 or 1 of some pairs of a row, channels of a tile, and these results.

  Args:
    window_ref: window of operands.
    squares_ref: weights of all products.
    blocks: blocks of the pass.
    row: row in the block of results.
    pairs: pairs of columns.
    bias_ref: addend of each channel of the results, [1, c], or None.
  """
  operand_channels, result_channels = blocks.operand_and_result_channels
  contracted = 1 if blocks.direction == "forward" else 0
  first = 0
  for lanes in lane_tiles(result_channels):
    shared = lanes.stop - lanes.start == HALF
    terms = packing.terms(operand_channels, of_pairs=shared)
    for column in range(1 if shared else 2):
      total = 0.0
      if bias_ref is not None:
        total = jnp.concatenate([bias_ref[:, lanes]] * (2 if shared else 1), axis=-1)
      for i, term in enumerate(terms):
        total += jax.lax.dot_general(
          reached(window_ref, term, slice(row, row + 1), pairs, column),
          squares_ref[first + i],
          (((1,), (contracted,)), ((), ())),
          preferred_element_type=jnp.float32,
        )
      total = total.reshape(-1, blocks.tile.images, LANES)
      if shared:
        yield 0, lanes, total[..., :HALF]
        yield 1, lanes, total[..., HALF:]
      else:
        yield column, lanes, total
    first += len(terms)
