"""Blocks of the weight's gradient: how the kernel's work is cut into the steps of a grid."""

import math
from typing import NamedTuple

from kernels.layout import LANES, is_stored_by_output
from kernels.tpu import VMEM_BYTES, divisors, rows_of_blocks

BLOCK_BYTES_MAX = 1 << 20
"""Size of a block that HBM needs longer for than a core for a step's overhead."""
COLUMNS_MAX = 4096


class Blocks(NamedTuple):
  """The blocks of a weight's gradient as XLA stores it: [inputs, outputs], or the transpose.

  Attributes:
    by_output: whether the gradient has a row for each output.
    rows: number of rows of a block; the last block may have fewer.
    columns: number of columns of a block.
  """

  by_output: bool
  rows: int
  columns: int


def choose(images: int, inputs: int, outputs: int, itemsize: int) -> Blocks:
  """Returns blocks that are as large as makes sense.

  Args:
    images: number of images, over which the gradient sums up.
    inputs: number of inputs of the layer.
    outputs: number of outputs of the layer.
    itemsize: bytes per element of the gradient and of what it is computed from.

  Raises:
    NotImplementedError: neither inputs nor outputs fill the lanes, or no block fits VMEM.
  """
  by_output = is_stored_by_output((inputs, outputs))
  rows, columns = (outputs, inputs) if by_output else (inputs, outputs)
  if columns % LANES:
    raise NotImplementedError("inputs and outputs that do not fill the lanes")
  block_columns = max(n for n in divisors(columns, of=LANES) if n <= COLUMNS_MAX)
  row_bytes = block_columns * itemsize
  if rows % LANES == 0:
    block_rows = rows_of_blocks(rows, row_bytes=row_bytes, bytes_max=BLOCK_BYTES_MAX, of=LANES)
  else:
    block_rows = min(rows, max(1, BLOCK_BYTES_MAX // row_bytes // LANES) * LANES)
  blocks = Blocks(by_output, block_rows, block_columns)
  # Two of each block in HBM's dtype, and the products in float32.
  elements = math.prod(blocks[1:])
  vmem_bytes = 2 * itemsize * (images * sum(blocks[1:]) + elements) + 4 * elements
  if vmem_bytes > VMEM_BYTES:
    raise NotImplementedError("images that do not fit VMEM")
  return blocks
