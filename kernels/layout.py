"""States how a TPU lays arrays out in memory, as far as references need it, too."""

from typing import Any

from jax import export

LANES = 128
SUBLANES = 8


def has_symbolic_dimension(shape: tuple[Any, ...]) -> bool:
  """Returns whether a shape has a size without a number, for which no layout can be chosen.

  `jax.export` makes programs for any number of images in this way.
  """
  return any(map(export.is_symbolic_dim, shape))


def tile_rows(itemsize: int) -> int:
  """Returns the number of rows that fill a tile of memory with elements of `itemsize` bytes."""
  return SUBLANES * 4 // itemsize


def is_stored_by_output(shape: tuple[int, ...]) -> bool:
  """Returns whether XLA stores filters or a matrix, [..., i, o], with a row for each output.

  It does so where the inputs fill the lanes and the outputs do not.
  """
  *_, inputs, outputs = shape
  return inputs % LANES == 0 and outputs % LANES != 0
