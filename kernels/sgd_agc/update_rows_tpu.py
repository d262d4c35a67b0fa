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
from jaxtyping import Array, Float

from kernels.layout import LANES, is_stored_by_output, tile_rows
from kernels.sgd_agc.formulas import HyperParameters, clip_scale
from kernels.sgd_agc.update_tpu import Refs, call_in_place, write_step
from kernels.tpu import rows_of_blocks

BLOCK_BYTES_MAX = 2 << 20
"""Largest block of one array: VMEM holds two of each of up to seven."""


def covers(shape: tuple[int, ...], gradient_itemsize: int) -> bool:
  """Returns whether units are rows that the kernel covers.

  Args:
    shape: shape of a parameter that is clipped, HWIO or IO.
    gradient_itemsize: bytes per element of the gradient.
  """
  rows = tile_rows(gradient_itemsize)
  fits = 4 * rows * math.prod(shape[:-1]) <= BLOCK_BYTES_MAX
  return fits and is_stored_by_output(shape) and shape[-1] % rows == 0


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
  units_of_block = rows_of_blocks(
    units, row_bytes=4 * taps * inputs, bytes_max=BLOCK_BYTES_MAX, of=rows
  )
  return call_in_place(
    functools.partial(_body, rows=rows),
    hyper_parameters,
    (parameter, gradient, momentum_buffer, ema),
    block=pl.BlockSpec((taps, units_of_block, inputs), lambda row: (0, row, 0)),
    squares=pl.BlockSpec((units_of_block, LANES), lambda row: (row, 0)),
    squares_shape=(units, LANES),
    grid=(units // units_of_block,),
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
      write_step(refs, place, refs.parameter_ref[place], gradient_of(place) * scale, hyper)
    return 0

  jax.lax.fori_loop(0, units // rows, step, 0)
