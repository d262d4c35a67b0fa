"""One parameter's step of SGD with AGC as a Pallas TPU kernel: one pass over HBM.

A block holds all of the weights that feed some output channels, so that the norms of these units
are known before the block is written back: parameter, gradient and buffer are read once, parameter
and buffer written once, in place. What is not clipped needs no whole units.

The chip's HBM takes 36 cycles of its two cores for every 2 x 1024 elements; the arithmetic takes 7
to 13 of them.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES = 128
SUBLANES = 8
CHUNK_ROWS_MAX = 40
"""Rows that are worked on at a time: with more, vectors of three arrays are spilled."""
BLOCK_ROWS_MAX = 2048
"""Five arrays of 2048 x 128 float32, each with two buffers, take 10 of VMEM's 16 MiB."""


def sgd_agc(
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  *,
  parameter_norm_floor: float,
  gradient_norm_floor: float,
) -> tuple[Float[Array, "*p"], Float[Array, "*p"], Float[Array, ""]]:
  """As the reference; the floors are its constants.

  Raises:
    NotImplementedError: for other shapes than matrices (IO) and filters (HWIO) of whole tiles, and
      other dtypes than float32.
  """
  arrays = (parameter, gradient, momentum_buffer)
  if {x.dtype for x in arrays} != {jnp.dtype(jnp.float32)}:
    raise NotImplementedError("a dtype other than float32")
  if parameter.ndim not in (2, 4):
    raise NotImplementedError("vectors and scalars")
  # XLA lays a matrix out the other way round whose columns do not fill the lanes.
  transposes = clipping is None and parameter.shape[-1] % LANES != 0

  def as_matrix(x):
    x = jnp.reshape(x, (-1, x.shape[-1]))
    return jnp.transpose(x) if transposes else x

  matrices = [as_matrix(x) for x in arrays]
  rows, columns = matrices[0].shape
  if columns % LANES or rows % SUBLANES:
    raise NotImplementedError("rows or columns that do not fill tiles")
  block_rows = rows if clipping is not None else _largest_divisor(rows, BLOCK_ROWS_MAX)
  if block_rows > BLOCK_ROWS_MAX:
    raise NotImplementedError("units that do not fit VMEM")
  hyper_parameters = [learning_rate, momentum, weight_decay]
  new_parameter, new_buffer, squares = _call(
    matrices,
    jnp.stack(hyper_parameters if clipping is None else [*hyper_parameters, clipping]),
    block_rows=block_rows,
    floors=(parameter_norm_floor, gradient_norm_floor),
  )

  def as_parameter(x):
    return jnp.reshape(jnp.transpose(x) if transposes else x, parameter.shape)

  return as_parameter(new_parameter), as_parameter(new_buffer), jnp.sum(squares)


def _largest_divisor(rows: int, at_most: int) -> int:
  """That is a multiple of the sublanes."""
  return max(divisor for divisor in range(SUBLANES, at_most + 1, SUBLANES) if rows % divisor == 0)


def _call(matrices, hyper_parameters, *, block_rows, floors):
  rows, columns = matrices[0].shape
  grid = (columns // LANES, rows // block_rows)
  block = pl.BlockSpec((block_rows, LANES), lambda column, row: (row, column))
  squares = pl.BlockSpec((SUBLANES, LANES), lambda column, row: (row, column))

  def described(like, shape):
    # Inside of shard_map, a result has to say over which axes it differs.
    return jax.ShapeDtypeStruct(
      shape, like.dtype, manual_axis_type=jax.typeof(like).manual_axis_type
    )

  parameter, gradient, buffer = matrices
  return pl.pallas_call(
    functools.partial(_body, floors=floors),
    grid=grid,
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block, block, block],
    out_specs=[block, block, squares],
    out_shape=[
      described(parameter, parameter.shape),
      described(buffer, buffer.shape),
      described(gradient, (grid[1] * SUBLANES, columns)),
    ],
    input_output_aliases={1: 0, 3: 1},
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    name="sgd_agc",
  )(hyper_parameters, *matrices)


def _body(
  hyper_parameters, parameter, gradient, buffer, new_parameter, new_buffer, squares, *, floors
):
  learning_rate, momentum, weight_decay = (hyper_parameters[i] for i in range(3))
  rows, columns = parameter.shape
  chunk_rows = _largest_divisor(rows, CHUNK_ROWS_MAX)
  clips = hyper_parameters.shape[0] == 4
  zeros = jnp.zeros((SUBLANES, columns), jnp.float32)

  def at(i):
    return pl.ds(pl.multiple_of(i * chunk_rows, SUBLANES), chunk_rows), slice(None)

  def square_sum(x):
    return jnp.sum(jnp.reshape(x * x, (-1, SUBLANES, columns)), axis=0)

  def over_chunks(body, carry):
    return jax.lax.fori_loop(0, rows // chunk_rows, body, carry)

  def add_squares(i, sums):
    return sums[0] + square_sum(parameter[at(i)]), sums[1] + square_sum(gradient[at(i)])

  if clips:
    parameter_squares, squares[...] = over_chunks(add_squares, (zeros, zeros))
    parameter_norm, norm = (
      jnp.sqrt(jnp.sum(x, axis=0, keepdims=True)) for x in (parameter_squares, squares[...])
    )
    largest = hyper_parameters[3] * jnp.maximum(parameter_norm, floors[0])
    scale = jnp.where(norm > largest, largest / jnp.maximum(norm, floors[1]), 1.0)

  def update(i, sums):
    p, g = parameter[at(i)], gradient[at(i)]
    if clips:
      g = g * scale
    else:
      sums = sums + square_sum(g)
    g = g + weight_decay * p
    m = momentum * buffer[at(i)] + g
    new_buffer[at(i)] = m
    new_parameter[at(i)] = p - learning_rate * (g + momentum * m)
    return sums

  sums = over_chunks(update, zeros)
  if not clips:
    squares[...] = sums
