"""The derivative of scaled weight standardization as a Pallas TPU kernel: one pass over HBM.

With n inputs of a filter, mean m, r = `formulas.inverse_deviation` and a gradient G of the
standardized weights gain * r * (w - m):

    gain's gradient = r sum(G (w - m))
    w's gradient = gain r (G - mean(G)) - gain r^3 (w - m) sum(G (w - m))

Where r is constant (`formulas.inverse_deviation_varies`), w's gradient has no second term.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.scaled_ws_conv.formulas import (
  Standardization,
  inverse_deviation,
  inverse_deviation_varies,
)
from kernels.tpu import LANES, SUBLANES, result_like

CHUNK_ROWS_MAX = 64
"""Largest number of rows that are computed at a time."""


class Refs(NamedTuple):
  """The kernel's refs.

  Axes: n inputs of a filter (all taps), o output channels, parts of the gradient to be added up.
  """

  input_scale_ref: Any  # [1], in SMEM
  weight_ref: Any  # [n, o]
  standardized_gradient_ref: Any  # [parts, n, o]
  gain_ref: Any  # [1, o]
  weight_gradient_ref: Any  # [n, o]
  gain_gradient_ref: Any  # [1, o]


def gradient(
  weight: Float[Array, "taps i o"],
  standardized_gradient: Float[Array, "parts taps i o"],
  gain: Float[Array, "1 o"],
  input_scale: Float[Array, "1"],
  *,
  standardization: Standardization,
) -> tuple[Float[Array, "taps i o"], Float[Array, " o"]]:
  """Returns the gradients of weight and gain.

  Args:
    weight: filters, float32; the number of inputs is a multiple of 8.
    standardized_gradient: float32; the sum over parts is the gradient of `input_scale` times the
      standardized weights.
    gain: scale of each filter, float32.
    input_scale: factor of the activated input, float32.
    standardization: see `formulas.inverse_deviation`.
  """
  outputs = weight.shape[-1]
  rows = weight.size // outputs
  columns = LANES if outputs % LANES == 0 else outputs
  parts = standardized_gradient.shape[0]

  vector = pl.BlockSpec((1, columns), lambda column: (0, column))
  matrix = pl.BlockSpec((rows, columns), lambda column: (0, column))
  matrices = pl.BlockSpec((parts, rows, columns), lambda column: (0, 0, column))

  def result(shape, spec):
    return Result(result_like(standardized_gradient, shape, jnp.float32), spec)

  written = call(
    functools.partial(_body, standardization=standardization),
    Refs(
      input_scale_ref=Operand(input_scale, pl.BlockSpec(memory_space=pltpu.SMEM)),
      weight_ref=Operand(weight.reshape(rows, outputs), matrix),
      standardized_gradient_ref=Operand(
        standardized_gradient.reshape(parts, rows, outputs), matrices
      ),
      gain_ref=Operand(gain, vector),
      weight_gradient_ref=result((rows, outputs), matrix),
      gain_gradient_ref=result((1, outputs), vector),
    ),
    name="standardization_gradient",
    grid=(outputs // columns,),
    dimension_semantics=("parallel",),
  )
  return written.weight_gradient_ref.reshape(weight.shape), written.gain_gradient_ref[0]


def _body(refs: Refs, *, standardization: Standardization):
  rows, columns = refs.weight_ref.shape
  chunk_rows = max(i for i in range(SUBLANES, CHUNK_ROWS_MAX + 1, SUBLANES) if rows % i == 0)
  # Sums are relative to a value of each filter, as in `formulas.filter_statistics`.
  origin = refs.weight_ref[0:1]

  def chunk(i):
    at = pl.ds(pl.multiple_of(i * chunk_rows, SUBLANES), chunk_rows), slice(None)
    offset = refs.weight_ref[at] - origin
    return at, offset, jnp.sum(refs.standardized_gradient_ref[:, *at], axis=0)

  def add(i, sums):
    _, offset, g = chunk(i)
    parts = (offset, offset * offset, g, offset * g)
    return tuple(
      total + jnp.sum(part.reshape(-1, SUBLANES, columns), axis=0)
      for total, part in zip(sums, parts, strict=True)
    )

  zeros = jnp.zeros((SUBLANES, columns), jnp.float32)
  sums = jax.lax.fori_loop(0, rows // chunk_rows, add, (zeros,) * 4)
  offset, square, g, product = (jnp.sum(x, axis=0, keepdims=True) for x in sums)
  mean_offset, mean_gradient = offset / rows, g / rows
  deviation = square - mean_offset * offset
  root = inverse_deviation(deviation, rows, standardization)
  # The products so far are with offsets from the origin; this makes the sum one of G (w - m).
  product = product - mean_offset * g
  scale = refs.gain_ref[...] * root * refs.input_scale_ref[0]
  varies = inverse_deviation_varies(deviation, standardization)
  along = jnp.where(varies, scale * root * root * product, 0.0)
  refs.gain_gradient_ref[...] = root * product * refs.input_scale_ref[0]

  def write(i, _):
    at, offset, g = chunk(i)
    refs.weight_gradient_ref[at] = scale * (g - mean_gradient) - along * (offset - mean_offset)
    return 0

  jax.lax.fori_loop(0, rows // chunk_rows, write, 0)
