"""One large parameter's step of SGD with AGC as a Pallas TPU kernel: one pass over HBM.

A block holds all of the weights that feed some output channels, so that the norms of these units
are known before the block is written back. Parameter, gradient and buffer are therefore read only
once, and parameter and buffer are written once, in place. Blocks of a parameter that is not clipped
need not hold whole units.

For every 2 x 1024 elements, HBM takes as long as 36 cycles of the chip's two cores; the arithmetic
takes 7 to 13 cycles. Small parameters, for which a launch takes longer than the work, are in
small_tpu.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES, SUBLANES
from kernels.sgd_agc.formulas import HyperParameters, clip_scale, nesterov_step, updated_ema
from kernels.sgd_agc.tile import Blocks
from kernels.tpu import result_like


class Refs(NamedTuple):
  """The refs of the kernel, with axes [rows, units]; the moving average's may be None.

  In update_rows_tpu.py, the axes are [taps, units, inputs], and [units, 128] of the square sums.
  """

  hyper_parameters_ref: Any  # [5], as `HyperParameters`, in SMEM
  parameter_ref: Any  # [r, u]
  gradient_ref: Any  # [r, u]
  momentum_buffer_ref: Any  # [r, u]
  ema_ref: Any | None  # [r, u]
  gradient_squares_ref: Any  # [8, u], sums over rows but for the sublanes
  new_parameter_ref: Any  # [r, u]
  new_momentum_buffer_ref: Any  # [r, u]
  new_ema_ref: Any | None  # [r, u]


# Under jit, this is traced only once for all equal parameters.
@functools.partial(jax.jit, static_argnames=("blocks",))
def update(
  hyper_parameters: Float[Array, "5"],
  parameter: Float[Array, "rows units"],
  gradient: Float[Array, "rows units"],
  momentum_buffer: Float[Array, "rows units"],
  ema: Float[Array, "rows units"] | None,
  *,
  blocks: Blocks,
) -> tuple[
  Float[Array, "rows units"],
  Float[Array, "rows units"],
  Float[Array, "rows units"] | None,
  Float[Array, "sums units"],
]:
  """Returns the new parameter, momentum buffer and moving average, in place, and square sums.

  Args:
    hyper_parameters: `HyperParameters` in their order.
    parameter: float32.
    gradient: float32 or bfloat16.
    momentum_buffer: float32.
    ema: float32, or None.
    blocks: blocks of the grid.

  Returns:
    The three arrays, and partial sums of the squared gradient before clipping.
  """
  grid, tile = blocks.grid, blocks.tile
  return call_in_place(
    functools.partial(_body, clips=blocks.problem.clips, chunk_rows=tile.chunk_rows),
    hyper_parameters,
    (parameter, gradient, momentum_buffer, ema),
    # Columns of the last block beyond the matrix's edge act as further units, which nobody reads.
    block=pl.BlockSpec((tile.rows, LANES), lambda column, row: (row, column)),
    squares=pl.BlockSpec((SUBLANES, LANES), lambda column, row: (row, column)),
    squares_shape=(grid[1] * SUBLANES, parameter.shape[1]),
    grid=grid,
  )


def call_in_place(
  body: Callable[[Refs], None],
  hyper_parameters: Float[Array, "5"],
  arrays: tuple[Array, Array, Array, Array | None],
  *,
  block: pl.BlockSpec,
  squares: pl.BlockSpec,
  squares_shape: tuple[int, ...],
  grid: tuple[int, ...],
) -> tuple[Array, Array, Array | None, Array]:
  """Calls a kernel of one large parameter.

  Args:
    body: the kernel.
    hyper_parameters: `HyperParameters` in their order.
    arrays: parameter, gradient, momentum buffer, and moving average or None, of one shape.
    block: block of each array.
    squares: block of the partial sums of the squared gradient.
    squares_shape: shape of these sums.
    grid: grid, whose axes are independent.

  Returns:
    The new parameter, momentum buffer and moving average, which overwrite the old ones, and the
    partial sums.
  """
  gradient = arrays[1]

  def new(operand: Operand) -> Result:
    shape = result_like(gradient, operand.array.shape, jnp.float32)
    return Result(shape, block, in_place_of=operand)

  parameter_operand, gradient_operand, buffer_operand, ema_operand = (
    None if array is None else Operand(array, block) for array in arrays
  )
  written = call(
    body,
    Refs(
      hyper_parameters_ref=Operand(hyper_parameters, pl.BlockSpec(memory_space=pltpu.SMEM)),
      parameter_ref=parameter_operand,
      gradient_ref=gradient_operand,
      momentum_buffer_ref=buffer_operand,
      ema_ref=ema_operand,
      gradient_squares_ref=Result(result_like(gradient, squares_shape, jnp.float32), squares),
      new_parameter_ref=new(parameter_operand),
      new_momentum_buffer_ref=new(buffer_operand),
      new_ema_ref=None if ema_operand is None else new(ema_operand),
    ),
    name="sgd_agc",
    grid=grid,
    dimension_semantics=("parallel",) * len(grid),
  )
  return (
    written.new_parameter_ref,
    written.new_momentum_buffer_ref,
    written.new_ema_ref,
    written.gradient_squares_ref,
  )


def _body(refs: Refs, *, clips: bool, chunk_rows: int):
  hyper = HyperParameters(*(refs.hyper_parameters_ref[i] for i in range(5)))
  rows, columns = refs.parameter_ref.shape
  zeros = jnp.zeros((SUBLANES, columns), jnp.float32)

  def chunk(i):
    return pl.ds(pl.multiple_of(i * chunk_rows, chunk_rows), chunk_rows), slice(None)

  def gradient_of(i):
    return refs.gradient_ref[chunk(i)].astype(jnp.float32)

  def square_sum(x):
    return jnp.sum(jnp.reshape(x * x, (-1, SUBLANES, columns)), axis=0)

  def over_chunks(body, carry):
    return jax.lax.fori_loop(0, rows // chunk_rows, body, carry)

  def add_squares(i, sums):
    parameter_squares, gradient_squares = sums
    return (
      parameter_squares + square_sum(refs.parameter_ref[chunk(i)]),
      gradient_squares + square_sum(gradient_of(i)),
    )

  if clips:
    parameter_squares, refs.gradient_squares_ref[...] = over_chunks(add_squares, (zeros, zeros))
    parameter_norm, gradient_norm = (
      jnp.sqrt(jnp.sum(squares, axis=0, keepdims=True))
      for squares in (parameter_squares, refs.gradient_squares_ref[...])
    )
    scale = clip_scale(parameter_norm, gradient_norm, hyper.clipping)

  def update_chunk(i, gradient_squares):
    parameter, gradient = refs.parameter_ref[chunk(i)], gradient_of(i)
    if clips:
      gradient = gradient * scale
    else:
      gradient_squares = gradient_squares + square_sum(gradient)
    write_step(refs, chunk(i), parameter, gradient, hyper)
    return gradient_squares

  gradient_squares = over_chunks(update_chunk, zeros)
  if not clips:
    refs.gradient_squares_ref[...] = gradient_squares


def write_step(refs: Refs, place, parameter, gradient, hyper: HyperParameters) -> None:
  """Writes the new values of a part of a block, given its parameters and clipped gradient."""
  parameter, buffer = nesterov_step(
    parameter,
    gradient,
    refs.momentum_buffer_ref[place],
    hyper.learning_rate,
    hyper.momentum,
    hyper.weight_decay,
  )
  refs.new_momentum_buffer_ref[place] = buffer
  refs.new_parameter_ref[place] = parameter
  if refs.ema_ref is not None:
    refs.new_ema_ref[place] = updated_ema(refs.ema_ref[place], parameter, hyper.ema_rate)
