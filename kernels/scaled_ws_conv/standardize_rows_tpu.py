"""Scaled weight standardization and its derivative where each output channel has a row.

XLA stores filters so whose output channels do not fill the lanes and whose input channels do, as
the parts of parameter shards. The formulas are those of `standardize_tpu`.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES, is_stored_by_output, tile_rows
from kernels.scaled_ws_conv.formulas import Standardization, inverse_deviation
from kernels.scaled_ws_conv.standardize_tpu import derivative
from kernels.tpu import result_like, rows_of_blocks

ROWS = tile_rows(2)
"""Rows that are computed at a time: a tile of bfloat16."""
BLOCK_BYTES_MAX = 4 << 20
"""Largest block of a float32 array; the others of a kernel are as large or smaller."""


class StandardizeRefs(NamedTuple):
  """The refs of the kernel that standardizes.

  Axes: t taps, o output channels, i input channels, m tiles of 128 inputs over all taps.
  """

  input_scale_ref: Any  # [1], in SMEM
  weight_ref: Any  # [t, o, i]
  gain_ref: Any  # [o, 1]
  rows_ref: Any  # [m, o, 128]


class GradientRefs(NamedTuple):
  """The refs of the derivative's kernel, with the axes of `StandardizeRefs`."""

  input_scale_ref: Any  # [1], in SMEM
  weight_ref: Any  # [t, o, i]
  standardized_gradient_ref: Any  # [m, o, 128]
  gain_ref: Any  # [o, 1]
  weight_gradient_ref: Any  # [t, o, i]
  gain_gradient_ref: Any  # [o, 1]


def can_standardize(weight_shape: tuple[int, ...]) -> bool:
  """Returns whether the kernels cover filters of a shape [taps, i, o]."""
  taps, inputs, outputs = weight_shape
  fits = 4 * taps * inputs * ROWS <= BLOCK_BYTES_MAX
  return fits and is_stored_by_output(weight_shape) and outputs % ROWS == 0


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
  blocks = _Blocks(weight.shape)
  written = call(
    functools.partial(_standardize_body, standardization=standardization),
    StandardizeRefs(
      input_scale_ref=Operand(input_scale, pl.BlockSpec(memory_space=pltpu.SMEM)),
      weight_ref=Operand(jnp.swapaxes(weight, 1, 2), blocks.weight),
      gain_ref=Operand(gain.reshape(-1, 1), blocks.vector),
      rows_ref=Result(result_like(weight, blocks.rows_shape, dtype), blocks.rows),
    ),
    name="standardization",
    grid=blocks.grid,
    dimension_semantics=("parallel",),
  )
  return written.rows_ref.reshape(weight.shape[0], -1, weight.shape[-1], LANES)


def gradient(
  weight: Float[Array, "taps i o"],
  standardized_gradient: Float[Array, "taps k o 128"],
  gain: Float[Array, "1 o"],
  input_scale: Float[Array, "1"],
  *,
  standardization: Standardization,
) -> tuple[Float[Array, "taps i o"], Float[Array, " o"]]:
  """Returns the gradients of weight and gain.

  Args:
    weight: filters, float32; see `can_standardize`.
    standardized_gradient: gradient of the rows that `standardize` returns, float32 or bfloat16.
    gain: scale of each filter, float32.
    input_scale: factor of the activated input, float32.
    standardization: see `formulas.inverse_deviation`.
  """
  blocks = _Blocks(weight.shape)
  taps, inputs, outputs = weight.shape

  def result(shape, spec):
    return Result(result_like(standardized_gradient, shape, jnp.float32), spec)

  written = call(
    functools.partial(_gradient_body, standardization=standardization),
    GradientRefs(
      input_scale_ref=Operand(input_scale, pl.BlockSpec(memory_space=pltpu.SMEM)),
      weight_ref=Operand(jnp.swapaxes(weight, 1, 2), blocks.weight),
      standardized_gradient_ref=Operand(
        standardized_gradient.reshape(blocks.rows_shape), blocks.rows
      ),
      gain_ref=Operand(gain.reshape(-1, 1), blocks.vector),
      weight_gradient_ref=result((taps, outputs, inputs), blocks.weight),
      gain_gradient_ref=result((outputs, 1), blocks.vector),
    ),
    name="standardization_gradient",
    grid=blocks.grid,
    dimension_semantics=("parallel",),
  )
  return jnp.swapaxes(written.weight_gradient_ref, 1, 2), written.gain_gradient_ref[:, 0]


class _Blocks:
  """Blocks of all inputs of some output channels: as many as fit, if both cores have one."""

  def __init__(self, weight_shape: tuple[int, ...]):
    taps, inputs, outputs = weight_shape
    block = rows_of_blocks(outputs, row_bytes=4 * taps * inputs, bytes_max=BLOCK_BYTES_MAX, of=ROWS)
    tiles = taps * inputs // LANES
    self.grid = (outputs // block,)
    self.rows_shape = (tiles, outputs, LANES)
    self.weight = pl.BlockSpec((taps, block, inputs), lambda row: (0, row, 0))
    self.rows = pl.BlockSpec((tiles, block, LANES), lambda row: (0, row, 0))
    self.vector = pl.BlockSpec((block, 1), lambda row: (row, 0))


def _over_rows(weight_ref: Any, compute: Callable[[Any], None]) -> None:
  """Calls `compute` with a slice for every few rows of a block."""

  def step(i, _):
    compute(pl.ds(pl.multiple_of(i * ROWS, ROWS), ROWS))
    return 0

  jax.lax.fori_loop(0, weight_ref.shape[1] // ROWS, step, 0)


def _tiles(weight_ref: Any) -> Iterator[tuple[int, int, slice]]:
  """Yields the number of each tile of inputs over all taps, its tap, and its lanes."""
  taps, _, inputs = weight_ref.shape
  starts = range(0, inputs, LANES)
  for tile, (tap, start) in enumerate(itertools.product(range(taps), starts)):
    yield tile, tap, slice(start, start + LANES)


def _standardize_body(refs: StandardizeRefs, *, standardization: Standardization):
  taps, _, inputs = refs.weight_ref.shape
  fan_in = taps * inputs

  def compute(rows):
    origin = refs.weight_ref[0, rows, 0:1]
    zeros = jnp.zeros((ROWS, LANES), jnp.float32)
    offsets, squares = zeros, zeros
    for _, tap, lanes in _tiles(refs.weight_ref):
      offset = refs.weight_ref[tap, rows, lanes] - origin
      offsets, squares = offsets + offset, squares + offset * offset
    total, square = (jnp.sum(x, axis=1, keepdims=True) for x in (offsets, squares))
    mean_offset = total / fan_in
    root = inverse_deviation(square - mean_offset * total, fan_in, standardization)
    scale, mean = refs.gain_ref[rows] * root * refs.input_scale_ref[0], origin + mean_offset
    for tile, tap, lanes in _tiles(refs.weight_ref):
      values = (refs.weight_ref[tap, rows, lanes] - mean) * scale
      refs.rows_ref[tile, rows] = values.astype(refs.rows_ref.dtype)

  _over_rows(refs.weight_ref, compute)


def _gradient_body(refs: GradientRefs, *, standardization: Standardization):
  taps, _, inputs = refs.weight_ref.shape

  def compute(rows):
    # Sums are relative to a value of each filter, as in `formulas.filter_statistics`.
    origin = refs.weight_ref[0, rows, 0:1]

    def values(tile, tap, lanes):
      offset = refs.weight_ref[tap, rows, lanes] - origin
      return offset, refs.standardized_gradient_ref[tile, rows].astype(jnp.float32)

    sums = (jnp.zeros((ROWS, LANES), jnp.float32),) * 4
    for place in _tiles(refs.weight_ref):
      offset, g = values(*place)
      parts = (offset, offset * offset, g, offset * g)
      sums = tuple(total + part for total, part in zip(sums, parts, strict=True))
    refs.gain_gradient_ref[rows], of_weight = derivative(
      *(jnp.sum(x, axis=1, keepdims=True) for x in sums),
      fan_in=taps * inputs,
      gain=refs.gain_ref[rows],
      input_scale=refs.input_scale_ref[0],
      standardization=standardization,
    )
    for place in _tiles(refs.weight_ref):
      _, tap, lanes = place
      refs.weight_gradient_ref[tap, rows, lanes] = of_weight(*values(*place))

  _over_rows(refs.weight_ref, compute)
