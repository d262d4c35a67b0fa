"""The derivative of scaled weight standardization as a Pallas TPU kernel: one pass over HBM.

With n inputs of a filter, mean m and variance v, r = rsqrt(max(n v, floor)) and a gradient G of the
standardized weights gain * r * (w - m):

    gain's gradient = r sum(G (w - m))
    w's gradient = gain r (G - mean(G)) - gain r^3 (w - m) sum(G (w - m)), the latter if n v > floor
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.tpu import LANES, SUBLANES, cost_estimate, result_like

CHUNK_ROWS_MAX = 64
"""Rows that are worked on at a time."""


def gradient(
  weight: Float[Array, "taps i o"],
  standardized_gradient: Float[Array, "parts taps i o"],
  gain: Float[Array, "1 o"],
  input_scale: Float[Array, "1"],
  *,
  variance_floor: float,
) -> tuple[Float[Array, "taps i o"], Float[Array, " o"]]:
  """Gradients of weight and gain.

  Args:
    weight: float32; inputs a multiple of 8.
    standardized_gradient: float32; the sum over parts is the gradient of the standardized weights
      times `input_scale`.
    gain: float32.
    input_scale: float32.
    variance_floor: see the reference.
  """
  outputs = weight.shape[-1]
  rows = weight.size // outputs
  columns = LANES if outputs % LANES == 0 else outputs
  parts = standardized_gradient.shape[0]

  vector = pl.BlockSpec((1, columns), lambda column: (0, column))
  matrix = pl.BlockSpec((rows, columns), lambda column: (0, column))
  operands = [
    input_scale,
    weight.reshape(rows, outputs),
    standardized_gradient.reshape(parts, rows, outputs),
    gain,
  ]
  results = [
    result_like(standardized_gradient, shape, jnp.float32)
    for shape in ((rows, outputs), (1, outputs))
  ]
  weight_gradient, gain_gradient = pl.pallas_call(
    functools.partial(_body, variance_floor=variance_floor),
    grid=(outputs // columns,),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      matrix,
      pl.BlockSpec((parts, rows, columns), lambda column: (0, 0, column)),
      vector,
    ],
    out_specs=[matrix, vector],
    out_shape=results,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    cost_estimate=cost_estimate(operands, results),
    name="standardization_gradient",
  )(*operands)
  return weight_gradient.reshape(weight.shape), gain_gradient[0]


def _body(
  input_scale,
  weight,
  standardized_gradient,
  gain,
  weight_gradient,
  gain_gradient,
  *,
  variance_floor,
):
  rows, columns = weight.shape
  chunk_rows = max(i for i in range(SUBLANES, CHUNK_ROWS_MAX + 1, SUBLANES) if rows % i == 0)
  origin = weight[0:1]

  def chunk(i):
    at = pl.ds(pl.multiple_of(i * chunk_rows, SUBLANES), chunk_rows), slice(None)
    return at, weight[at] - origin, jnp.sum(standardized_gradient[:, *at], axis=0)

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
  root = jax.lax.rsqrt(jnp.maximum(deviation, variance_floor))
  # Of the gradient with the deviations from the mean.
  product = product - mean_offset * g
  scale = gain[...] * root * input_scale[0]
  along = jnp.where(deviation > variance_floor, scale * root * root * product, 0.0)
  gain_gradient[...] = root * product * input_scale[0]

  def write(i, _):
    at, offset, g = chunk(i)
    weight_gradient[at] = scale * (g - mean_gradient) - along * (offset - mean_offset)
    return 0

  jax.lax.fori_loop(0, rows // chunk_rows, write, 0)
