"""One parameter's step of SGD with AGC as a Pallas TPU kernel: one pass over HBM.

A block holds all of the weights that feed some output channels, so that the norms of these units
are known before the block is written back: parameter, gradient and buffer are read once, parameter
and buffer written once, in place. What is not clipped needs no whole units.

The chip's HBM takes 36 cycles of its two cores for every 2 x 1024 elements; the arithmetic takes 7
to 13 of them. Small parameters, for which a launch takes longer than the work, are in small_tpu.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.tpu import LANES, SUBLANES, cost_estimate, result_like

CHUNK_ROWS_MAX = 40
"""Rows that are worked on at a time: with more, vectors of three arrays are spilled."""
BLOCK_ROWS_MAX = 2048
"""Seven arrays of 2048 x 128 float32, each with two buffers, take 14 of VMEM's 16 MiB."""


def sgd_agc(
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  average: Float[Array, "*p"] | None,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  average_decay: Float[Array, ""] | None,
  *,
  parameter_norm_floor: float,
  gradient_norm_floor: float,
) -> tuple[Float[Array, "*p"], Float[Array, "*p"], Float[Array, "*p"] | None, Float[Array, ""]]:
  """As the reference; the floors are its constants.

  Raises:
    NotImplementedError: for other shapes than matrices (IO) and filters (HWIO) of whole tiles, and
      other dtypes than float32, or bfloat16 of the gradient.
  """
  arrays = [parameter, gradient, momentum_buffer]
  if average is not None:
    arrays.append(average)
  if gradient.dtype not in (jnp.float32, jnp.bfloat16) or {
    x.dtype for x in arrays if x is not gradient
  } != {jnp.dtype(jnp.float32)}:
    raise NotImplementedError("a dtype other than float32, or bfloat16 of the gradient")
  if parameter.ndim not in (2, 4):
    raise NotImplementedError("vectors and scalars")
  # XLA lays a matrix out the other way round whose columns do not fill the lanes.
  transposes = clipping is None and parameter.shape[-1] % LANES != 0

  def as_matrix(x):
    x = jnp.reshape(x, (-1, x.shape[-1]))
    return jnp.transpose(x) if transposes else x

  matrices = [as_matrix(x) for x in arrays]
  rows, columns = matrices[0].shape
  if rows % _tile_rows(gradient.dtype):
    # 1000 classes, of which two share a sublane.
    matrices[1] = matrices[1].astype(jnp.float32)
  tile_rows = _tile_rows(matrices[1].dtype)
  if rows % tile_rows or (transposes and columns % LANES):
    raise NotImplementedError("rows or columns that do not fill tiles")
  block_rows = (
    rows if clipping is not None else _largest_divisor(rows, BLOCK_ROWS_MAX, of=tile_rows)
  )
  if block_rows > BLOCK_ROWS_MAX:
    raise NotImplementedError("units that do not fit VMEM")
  squares, *results = _call(
    stacked_hyper_parameters(learning_rate, momentum, weight_decay, clipping, average_decay),
    matrices,
    block_rows=block_rows,
    clips=clipping is not None,
    floors=(parameter_norm_floor, gradient_norm_floor),
  )

  def as_parameter(x):
    return jnp.reshape(jnp.transpose(x) if transposes else x, parameter.shape)

  new_parameter, new_buffer, *new_average = map(as_parameter, results)
  return new_parameter, new_buffer, new_average[0] if new_average else None, jnp.sum(squares)


def _tile_rows(dtype: jnp.dtype) -> int:
  """Sublanes hold 32 bits."""
  return SUBLANES * 4 // dtype.itemsize


def _largest_divisor(rows: int, at_most: int, *, of: int) -> int:
  """That is a multiple of `of`."""
  return max(divisor for divisor in range(of, at_most + 1, of) if rows % divisor == 0)


# Traced once for all equal parameters.
@functools.partial(jax.jit, static_argnames=("block_rows", "clips", "floors"))
def _call(hyper_parameters, matrices, *, block_rows, clips, floors):
  """Sums of squares, and all matrices but the second anew, in place."""
  rows, columns = matrices[0].shape
  # What the last block has beyond the last column are units of their own, which nobody reads.
  grid = (pl.cdiv(columns, LANES), rows // block_rows)
  block = pl.BlockSpec((block_rows, LANES), lambda column, row: (row, column))
  squares = pl.BlockSpec((SUBLANES, LANES), lambda column, row: (row, column))

  parameter, gradient, *others = matrices
  changed = [parameter, *others]
  results = [
    result_like(gradient, (grid[1] * SUBLANES, columns), jnp.float32),
    *(result_like(matrix, matrix.shape, jnp.float32) for matrix in changed),
  ]
  return pl.pallas_call(
    functools.partial(_body, clips=clips, floors=floors),
    grid=grid,
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *[block] * len(matrices)],
    out_specs=[squares, *[block] * len(changed)],
    out_shape=results,
    # The first operand is the hyper-parameters, the third the gradient.
    input_output_aliases={1: 1, **{i + 1: i for i in range(2, len(changed) + 1)}},
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    cost_estimate=cost_estimate(matrices, results),
    name="sgd_agc",
  )(hyper_parameters, *matrices)


def _body(hyper_parameters, parameter, gradient, buffer, *refs, clips, floors):
  # With an average, it comes first and its new value last.
  *average, squares, new_parameter, new_buffer = refs if len(refs) == 3 else refs[:-1]
  learning_rate, momentum, weight_decay, clipping, average_rate = (
    hyper_parameters[i] for i in range(5)
  )
  rows, columns = parameter.shape
  tile_rows = _tile_rows(gradient.dtype)
  chunk_rows = _largest_divisor(rows, CHUNK_ROWS_MAX, of=tile_rows)
  zeros = jnp.zeros((SUBLANES, columns), jnp.float32)

  def at(i):
    return pl.ds(pl.multiple_of(i * chunk_rows, tile_rows), chunk_rows), slice(None)

  def gradient_of(i):
    return gradient[at(i)].astype(jnp.float32)

  def square_sum(x):
    return jnp.sum(jnp.reshape(x * x, (-1, SUBLANES, columns)), axis=0)

  def over_chunks(body, carry):
    return jax.lax.fori_loop(0, rows // chunk_rows, body, carry)

  def add_squares(i, sums):
    return sums[0] + square_sum(parameter[at(i)]), sums[1] + square_sum(gradient_of(i))

  if clips:
    parameter_squares, squares[...] = over_chunks(add_squares, (zeros, zeros))
    parameter_norm, norm = (
      jnp.sqrt(jnp.sum(x, axis=0, keepdims=True)) for x in (parameter_squares, squares[...])
    )
    scale = clip_scale(parameter_norm, norm, clipping, floors)

  def update(i, sums):
    p, g = parameter[at(i)], gradient_of(i)
    if clips:
      g = g * scale
    else:
      sums = sums + square_sum(g)
    p, m = moved(p, g, buffer[at(i)], learning_rate, momentum, weight_decay)
    new_buffer[at(i)] = m
    new_parameter[at(i)] = p
    if average:
      refs[-1][at(i)] = averaged(average[0][at(i)], p, average_rate)
    return sums

  sums = over_chunks(update, zeros)
  if not clips:
    squares[...] = sums


def stacked_hyper_parameters(learning_rate, momentum, weight_decay, clipping, average_decay):
  """As a kernel's scalars: in this order, 0 for None, and the average's rate for its decay."""
  nothing = jnp.zeros((), jnp.float32)
  clipping = nothing if clipping is None else clipping
  average_rate = nothing if average_decay is None else 1 - average_decay
  return jnp.stack([learning_rate, momentum, weight_decay, clipping, average_rate])


def clip_scale(parameter_norm, gradient_norm, clipping, floors):
  """What AGC multiplies gradients by, given the norms of their units."""
  largest = clipping * jnp.maximum(parameter_norm, floors[0])
  scale = largest / jnp.maximum(gradient_norm, floors[1])
  return jnp.where(gradient_norm > largest, scale, 1.0)


def moved(parameter, gradient, buffer, learning_rate, momentum, weight_decay):
  """New parameter and buffer."""
  gradient = gradient + weight_decay * parameter
  buffer = momentum * buffer + gradient
  return parameter - learning_rate * (gradient + momentum * buffer), buffer


def averaged(average, parameter, rate):
  """New average."""
  return average + rate * (parameter - average)
