"""The step of one large parameter whose units are rows, as a Pallas TPU kernel.

XLA stores a parameter so if its outputs do not fill the lanes and its inputs do, as the parts of
parameter shards. Otherwise this is the kernel of update_tpu.py: one pass over HBM, in place.
"""

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.sgd_agc.formulas import HyperParameters, clip_scale, nesterov_step, updated_ema
from kernels.sgd_agc.update_tpu import Refs
from kernels.tpu import LANES, SUBLANES, divisors, result_like

BLOCK_BYTES_MAX = 2 << 20
"""Largest block of one array: VMEM holds two of each of up to seven."""


def covers(shape: tuple[int, ...], gradient_itemsize: int) -> bool:
  """Returns whether units are rows that the kernel covers.

  Args:
    shape: shape of a parameter that is clipped, HWIO or IO.
    gradient_itemsize: bytes per element of the gradient.
  """
  *_, inputs, outputs = shape
  rows = tile_rows(gradient_itemsize)
  fits = 4 * rows * math.prod(shape[:-1]) <= BLOCK_BYTES_MAX
  return fits and inputs % LANES == 0 and outputs % LANES != 0 and outputs % rows == 0


def tile_rows(gradient_itemsize: int) -> int:
  """Returns the number of rows that fill tiles of all arrays, which are computed at a time."""
  return SUBLANES * 4 // gradient_itemsize


# Under jit, this is traced only once for all equal parameters.
@jax.jit
def update_rows(
  hyper_parameters: Float[Array, "5"],
  parameter: Float[Array, "taps units inputs"],
  gradient: Float[Array, "taps units inputs"],
  momentum_buffer: Float[Array, "taps units inputs"],
  ema: Float[Array, "taps units inputs"] | None,
) -> tuple[
  Float[Array, "taps units inputs"],
  Float[Array, "taps units inputs"],
  Float[Array, "taps units inputs"] | None,
  Float[Array, "units 128"],
]:
  """Returns the new parameter, momentum buffer and moving average, in place, and square sums.

  Args:
    hyper_parameters: `HyperParameters` in their order.
    parameter: float32; see `covers`.
    gradient: float32 or bfloat16.
    momentum_buffer: float32.
    ema: float32, or None.

  Returns:
    The three arrays, and partial sums of the squared gradient before clipping.
  """
  taps, units, inputs = parameter.shape
  rows = tile_rows(gradient.dtype.itemsize)
  row_bytes = 4 * taps * inputs
  fitting = [n for n in divisors(units, of=rows) if n * row_bytes <= BLOCK_BYTES_MAX]
  units_of_block = max((n for n in fitting if n < units), default=fitting[-1])
  block = pl.BlockSpec((taps, units_of_block, inputs), lambda row: (0, row, 0))
  squares = pl.BlockSpec((units_of_block, LANES), lambda row: (row, 0))

  def new(operand: Operand) -> Result:
    shape = result_like(gradient, operand.array.shape, jnp.float32)
    return Result(shape, block, in_place_of=operand)

  parameter_operand, buffer_operand = Operand(parameter, block), Operand(momentum_buffer, block)
  ema_operand = None if ema is None else Operand(ema, block)
  written = call(
    functools.partial(_body, rows=rows),
    Refs(
      hyper_parameters_ref=Operand(hyper_parameters, pl.BlockSpec(memory_space=pltpu.SMEM)),
      parameter_ref=parameter_operand,
      gradient_ref=Operand(gradient, block),
      momentum_buffer_ref=buffer_operand,
      ema_ref=ema_operand,
      gradient_squares_ref=Result(result_like(gradient, (units, LANES), jnp.float32), squares),
      new_parameter_ref=new(parameter_operand),
      new_momentum_buffer_ref=new(buffer_operand),
      new_ema_ref=None if ema_operand is None else new(ema_operand),
    ),
    name="sgd_agc",
    grid=(units // units_of_block,),
    dimension_semantics=("parallel",),
  )
  return (
    written.new_parameter_ref,
    written.new_momentum_buffer_ref,
    written.new_ema_ref,
    written.gradient_squares_ref,
  )


def _body(refs: Refs, *, rows: int):
  """Updates a block; the axes of its refs are [taps, units, inputs]."""
  hyper = HyperParameters(*(refs.hyper_parameters_ref[i] for i in range(5)))
  taps, units, inputs = refs.parameter_ref.shape

  def tiles(at) -> Iterator[tuple]:
    for tap, start in itertools.product(range(taps), range(0, inputs, LANES)):
      yield tap, at, slice(start, start + LANES)

  def gradient_of(place):
    return refs.gradient_ref[place].astype(jnp.float32)

  def step(i, _):
    at = pl.ds(pl.multiple_of(i * rows, rows), rows)
    parameter_squares = gradient_squares = jnp.zeros((rows, LANES), jnp.float32)
    for place in tiles(at):
      parameter, gradient = refs.parameter_ref[place], gradient_of(place)
      parameter_squares += parameter * parameter
      gradient_squares += gradient * gradient
    refs.gradient_squares_ref[at] = gradient_squares
    norms = (
      jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True))
      for squares in (parameter_squares, gradient_squares)
    )
    scale = clip_scale(*norms, hyper.clipping)
    for place in tiles(at):
      parameter, buffer = nesterov_step(
        refs.parameter_ref[place],
        gradient_of(place) * scale,
        refs.momentum_buffer_ref[place],
        hyper.learning_rate,
        hyper.momentum,
        hyper.weight_decay,
      )
      refs.new_momentum_buffer_ref[place] = buffer
      refs.new_parameter_ref[place] = parameter
      if refs.ema_ref is not None:
        refs.new_ema_ref[place] = updated_ema(refs.ema_ref[place], parameter, hyper.ema_rate)
    return 0

  jax.lax.fori_loop(0, units // rows, step, 0)
