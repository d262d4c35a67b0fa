"""One parameter's step of SGD with AGC as a Pallas TPU kernel: one pass over HBM.

A block holds all of the weights that feed some output channels, so that the norms of these units
are known before the block is written back: parameter, gradient and buffer are read once, parameter
and buffer written once, in place. What is not clipped needs no whole units.

The chip's HBM takes 36 cycles of its two cores for every 2 x 1024 elements; the arithmetic takes 7
to 13 of them. Small parameters, for which a launch takes longer than the work, are in small_tpu.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.sgd_agc.tile import Blocks, Matrix, choose
from kernels.tpu import LANES, SUBLANES, cost_estimate, result_like


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
  if gradient.dtype not in (jnp.float32, jnp.bfloat16) or any(
    x.dtype != jnp.float32 for x in (parameter, momentum_buffer, *arrays[3:])
  ):
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
  matrix = Matrix(
    rows=rows,
    columns=columns,
    clips=clipping is not None,
    gradient_itemsize=gradient.dtype.itemsize,
    has_average=average is not None,
  )
  if rows % matrix.tile_rows:
    # 1000 classes, of which two share a sublane.
    matrix = dataclasses.replace(matrix, gradient_itemsize=4)
    matrices[1] = matrices[1].astype(jnp.float32)
  if rows % matrix.tile_rows or (transposes and columns % LANES):
    raise NotImplementedError("rows or columns that do not fill tiles")
  squares, *results = update(
    stacked_hyper_parameters(learning_rate, momentum, weight_decay, clipping, average_decay),
    matrices,
    blocks=choose(matrix),
    floors=(parameter_norm_floor, gradient_norm_floor),
  )

  def as_parameter(x):
    return jnp.reshape(jnp.transpose(x) if transposes else x, parameter.shape)

  new_parameter, new_buffer, *new_average = map(as_parameter, results)
  return new_parameter, new_buffer, new_average[0] if new_average else None, jnp.sum(squares)


# Traced once for all equal parameters.
@functools.partial(jax.jit, static_argnames=("blocks", "floors"))
def update(
  hyper_parameters: Float[Array, "5"],
  matrices: list[Float[Array, "rows columns"]],
  *,
  blocks: Blocks,
  floors: tuple[float, float],
) -> tuple[Float[Array, "..."], ...]:
  """Sums of squares, and all matrices but the second anew, in place."""
  grid, tile = blocks.grid, blocks.tile
  # What the last block has beyond the last column are units of their own, which nobody reads.
  block = pl.BlockSpec((tile.rows, LANES), lambda column, row: (row, column))
  squares = pl.BlockSpec((SUBLANES, LANES), lambda column, row: (row, column))

  parameter, gradient, *others = matrices
  changed = [parameter, *others]
  results = [
    result_like(gradient, (grid[1] * SUBLANES, parameter.shape[1]), jnp.float32),
    *(result_like(matrix, matrix.shape, jnp.float32) for matrix in changed),
  ]
  return pl.pallas_call(
    functools.partial(_body, clips=blocks.matrix.clips, chunk_rows=tile.chunk_rows, floors=floors),
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


def _body(hyper_parameters, parameter, gradient, buffer, *refs, clips, chunk_rows, floors):
  # With an average, it comes first and its new value last.
  *average, squares, new_parameter, new_buffer = refs if len(refs) == 3 else refs[:-1]
  learning_rate, momentum, weight_decay, clipping, average_rate = (
    hyper_parameters[i] for i in range(5)
  )
  rows, columns = parameter.shape
  zeros = jnp.zeros((SUBLANES, columns), jnp.float32)

  def at(i):
    return pl.ds(pl.multiple_of(i * chunk_rows, chunk_rows), chunk_rows), slice(None)

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
