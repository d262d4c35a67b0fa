"""Scaled weight standardization and its derivative as Pallas TPU kernels: one pass over HBM each.

With n inputs of a filter, mean m, r = `formulas.inverse_deviation` and a gradient G of the
standardized weights gain * r * (w - m):

    gain's gradient = r sum(G (w - m))
    w's gradient = gain r (G - mean(G)) - gain r^3 (w - m) sum(G (w - m))

Where r is constant (`formulas.inverse_deviation_varies`), w's gradient has no second term.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES, SUBLANES
from kernels.scaled_ws_conv.formulas import (
  Standardization,
  filter_statistics,
  inverse_deviation,
  inverse_deviation_varies,
)
from kernels.scaled_ws_conv.problem import lane_tiles
from kernels.tpu import result_like

CHUNK_ROWS_MAX = 64
"""Largest number of rows that are computed at a time."""


class StandardizeRefs(NamedTuple):
  """The refs of the kernel that standardizes.

  Axes: n inputs of a filter (all taps), m tiles of 128 of these, o output channels.
  """

  input_scale_ref: Any  # [1], in SMEM
  weight_ref: Any  # [n, o]
  gain_ref: Any  # [1, o]
  rows_ref: Any  # [m, o, 128]


class Refs(NamedTuple):
  """The refs of the derivative's kernel.

  Axes: n inputs of a filter (all taps), o output channels, parts of the gradient to be added up, m
  tiles of 128 inputs.
  """

  input_scale_ref: Any  # [1], in SMEM
  weight_ref: Any  # [n, o]
  standardized_gradient_ref: Any  # [parts, n, o], or in rows [m, o, 128]
  gain_ref: Any  # [1, o]
  weight_gradient_ref: Any  # [n, o]
  gain_gradient_ref: Any  # [1, o]
  columns_ref: Any  # scratch [m, 128, o], for a gradient in rows


def can_standardize(weight_shape: tuple[int, ...]) -> bool:
  """Returns whether `standardize` covers filters of a shape [taps, i, o]."""
  return not any(size % LANES for size in weight_shape[1:])


def standardize(
  weight: Float[Array, "taps i o"],
  gain: Float[Array, "1 o"],
  input_scale: Float[Array, "1"],
  *,
  dtype: jnp.dtype,
  standardization: Standardization,
) -> Float[Array, "taps k o 128"]:
  """Returns `input_scale` times the standardized weights in rows.

  Args:
    weight: filters, float32; see `can_standardize`.
    gain: scale of each filter, float32.
    input_scale: factor of the activated input, float32.
    dtype: dtype of the rows.
    standardization: see `formulas.inverse_deviation`.
  """
  taps, inputs, outputs = weight.shape
  rows = taps * inputs
  vector = pl.BlockSpec((1, LANES), lambda column: (0, column))
  written = call(
    functools.partial(_standardize_body, standardization=standardization),
    StandardizeRefs(
      input_scale_ref=Operand(input_scale, pl.BlockSpec(memory_space=pltpu.SMEM)),
      weight_ref=Operand(
        weight.reshape(rows, outputs), pl.BlockSpec((rows, LANES), lambda column: (0, column))
      ),
      gain_ref=Operand(gain, vector),
      rows_ref=Result(
        result_like(weight, (rows // LANES, outputs, LANES), dtype), _rows_block(rows)
      ),
    ),
    name="standardization",
    grid=(outputs // LANES,),
    dimension_semantics=("parallel",),
  )
  return written.rows_ref.reshape(taps, -1, outputs, LANES)


def _rows_block(rows: int) -> pl.BlockSpec:
  return pl.BlockSpec((rows // LANES, LANES, LANES), lambda column: (0, column, 0))


def _standardize_body(refs: StandardizeRefs, *, standardization: Standardization):
  mean, scale = filter_statistics(refs.weight_ref[...], refs.gain_ref[0], standardization)
  mean, scale = mean[None], (scale * refs.input_scale_ref[0])[None]

  def write(tile, _):
    at = pl.ds(pl.multiple_of(tile * LANES, LANES), LANES), slice(None)
    values = (refs.weight_ref[at] - mean) * scale
    refs.rows_ref[tile] = values.T.astype(refs.rows_ref.dtype)
    return 0

  jax.lax.fori_loop(0, refs.rows_ref.shape[0], write, 0)


def gradient(
  weight: Float[Array, "taps i o"],
  standardized_gradient: Float[Array, "parts taps i o"] | Float[Array, "taps k o 128"],
  gain: Float[Array, "1 o"],
  input_scale: Float[Array, "1"],
  *,
  in_rows: bool,
  standardization: Standardization,
) -> tuple[Float[Array, "taps i o"], Float[Array, " o"]]:
  """Returns the gradients of weight and gain.

  Args:
    weight: filters, float32; the number of inputs is a multiple of 8.
    standardized_gradient: gradient of `input_scale` times the standardized weights, float32: parts
      to be added up, or the gradient of their rows, also in bfloat16.
    gain: scale of each filter, float32.
    input_scale: factor of the activated input, float32.
    in_rows: whether `standardized_gradient` is in rows.
    standardization: see `formulas.inverse_deviation`.
  """
  outputs = weight.shape[-1]
  rows = weight.size // outputs
  columns = LANES if outputs % LANES == 0 else outputs

  vector = pl.BlockSpec((1, columns), lambda column: (0, column))
  matrix = pl.BlockSpec((rows, columns), lambda column: (0, column))
  if in_rows:
    gradients = Operand(
      standardized_gradient.reshape(rows // LANES, outputs, LANES), _rows_block(rows)
    )
  else:
    parts = standardized_gradient.shape[0]
    gradients = Operand(
      standardized_gradient.reshape(parts, rows, outputs),
      pl.BlockSpec((parts, rows, columns), lambda column: (0, 0, column)),
    )

  def result(shape, spec):
    return Result(result_like(standardized_gradient, shape, jnp.float32), spec)

  written = call(
    functools.partial(_body, standardization=standardization),
    Refs(
      input_scale_ref=Operand(input_scale, pl.BlockSpec(memory_space=pltpu.SMEM)),
      weight_ref=Operand(weight.reshape(rows, outputs), matrix),
      standardized_gradient_ref=gradients,
      gain_ref=Operand(gain, vector),
      weight_gradient_ref=result((rows, outputs), matrix),
      gain_gradient_ref=result((1, outputs), vector),
      columns_ref=pltpu.VMEM((rows // LANES, LANES, columns), jnp.float32) if in_rows else None,
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

  if refs.columns_ref is not None:

    def transpose(tile, _):
      refs.columns_ref[tile] = refs.standardized_gradient_ref[tile].astype(jnp.float32).T
      return 0

    jax.lax.fori_loop(0, rows // LANES, transpose, 0)

  def chunk(i):
    at = pl.ds(pl.multiple_of(i * chunk_rows, SUBLANES), chunk_rows), slice(None)
    offset = refs.weight_ref[at] - origin
    if refs.columns_ref is None:
      return at, offset, jnp.sum(refs.standardized_gradient_ref[:, *at], axis=0)
    per_tile = LANES // chunk_rows
    within = pl.ds(pl.multiple_of(i % per_tile * chunk_rows, SUBLANES), chunk_rows)
    return at, offset, refs.columns_ref[i // per_tile, within]

  def add(i, sums):
    _, offset, g = chunk(i)
    parts = (offset, offset * offset, g, offset * g)
    return tuple(
      total + jnp.sum(part.reshape(-1, SUBLANES, columns), axis=0)
      for total, part in zip(sums, parts, strict=True)
    )

  zeros = jnp.zeros((SUBLANES, columns), jnp.float32)
  sums = jax.lax.fori_loop(0, rows // chunk_rows, add, (zeros,) * 4)
  refs.gain_gradient_ref[...], of_weight = derivative(
    *(jnp.sum(x, axis=0, keepdims=True) for x in sums),
    fan_in=rows,
    gain=refs.gain_ref[...],
    input_scale=refs.input_scale_ref[0],
    standardization=standardization,
  )

  def write(i, _):
    at, offset, g = chunk(i)
    refs.weight_gradient_ref[at] = of_weight(offset, g)
    return 0

  jax.lax.fori_loop(0, rows // chunk_rows, write, 0)


def derivative(
  offset: Array,
  square: Array,
  g: Array,
  product: Array,
  *,
  fan_in: int,
  gain: Array,
  input_scale: Array,
  standardization: Standardization,
) -> tuple[Array, Callable[[Array, Array], Array]]:
  """Returns the gain's gradient, and the function that gives the weights'.

  All arrays have one value for each filter, along one of two axes.

  Args:
    offset: sum of the weights' offsets from a value of the filter.
    square: sum of their squares.
    g: sum of the gradients of the standardized weights.
    product: sum of offset times gradient.
    fan_in: number of inputs of a filter.
    gain: scale of each filter.
    input_scale: factor of the activated input.
    standardization: see `formulas.inverse_deviation`.

  Returns:
    The gradient, and a function from offsets and gradients of the standardized weights to gradients
    of the weights.
  """
  mean_offset, mean_gradient = offset / fan_in, g / fan_in
  deviation = square - mean_offset * offset
  root = inverse_deviation(deviation, fan_in, standardization)
  # The products so far are with offsets from the origin; this makes the sum one of G (w - m).
  product = product - mean_offset * g
  scale = gain * root * input_scale
  varies = inverse_deviation_varies(deviation, standardization)
  along = jnp.where(varies, scale * root * root * product, 0.0)

  def of_weight(offset, g):
    return scale * (g - mean_gradient) - along * (offset - mean_offset)

  return root * product * input_scale, of_weight


def write_standardized(refs: Any) -> None:
  """Writes input_scale * scale * (weight - mean) in squares, with zeros beyond the last channel.

  Folding the input's scale into that of the weights costs nothing.

  Args:
    refs: the refs of a pass over raw filters; `standardized_ref` is written.
  """
  mean = refs.statistics_ref[0:1]
  scale = refs.statistics_ref[1:2] * refs.input_scale_ref[0]
  taps, inputs, outputs = refs.weight_ref.shape
  for t, (k, rows), (j, lanes) in itertools.product(
    range(taps), enumerate(lane_tiles(inputs)), enumerate(lane_tiles(outputs))
  ):
    values = (refs.weight_ref[t, rows, lanes] - mean[:, lanes]) * scale[:, lanes]
    height, width = values.shape
    if (height, width) != (LANES, LANES):
      refs.standardized_ref[t, k, j] = jnp.zeros_like(refs.standardized_ref[t, k, j])
    refs.standardized_ref[t, k, j, :height, :width] = values.astype(refs.standardized_ref.dtype)
