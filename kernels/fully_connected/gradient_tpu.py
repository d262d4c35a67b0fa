"""The gradient of a fully connected layer's weight, as a Pallas TPU kernel.

It is a product that sums over the images of a chip only, of which there are few. So nearly all of
its work is to write the result, which XLA's own product does at a quarter of HBM's bandwidth.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.fully_connected.tile import Blocks
from kernels.tpu import result_like


class _Refs(NamedTuple):
  """The refs of the kernel: blocks of one step."""

  row_ref: Any  # [images, rows of the gradient]
  column_ref: Any  # [images, columns of the gradient]
  gradient_ref: Any  # [rows, columns]


def weight_gradient(
  x: Float[Array, "n i"], cotangent: Float[Array, "n o"], *, blocks: Blocks
) -> Float[Array, "i o"]:
  """Returns the sum over the images of x times cotangent, in the dtype of both.

  Args:
    x: input of the layer.
    cotangent: cotangent of the layer's output.
    blocks: blocks of the gradient.
  """
  of_rows, of_columns = (cotangent, x) if blocks.by_output else (x, cotangent)
  images, rows = of_rows.shape
  columns = of_columns.shape[1]
  written = call(
    _body,
    _Refs(
      row_ref=Operand(of_rows, pl.BlockSpec((images, blocks.rows), lambda row, column: (0, row))),
      column_ref=Operand(
        of_columns, pl.BlockSpec((images, blocks.columns), lambda row, column: (0, column))
      ),
      gradient_ref=Result(
        result_like(x, (rows, columns), x.dtype),
        pl.BlockSpec((blocks.rows, blocks.columns), lambda row, column: (row, column)),
      ),
    ),
    name="fully_connected_gradient",
    grid=(pl.cdiv(rows, blocks.rows), columns // blocks.columns),
    dimension_semantics=("parallel", "parallel"),
    macs=images * rows * columns,
  )
  return written.gradient_ref.T if blocks.by_output else written.gradient_ref


def _body(refs: _Refs):
  products = jax.lax.dot_general(
    refs.row_ref[...],
    refs.column_ref[...],
    (((0,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  refs.gradient_ref[...] = products.astype(refs.gradient_ref.dtype)
