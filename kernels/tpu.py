"""Constants of a TPU core and small functions that all Pallas TPU kernels need."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
from jax.experimental import pallas as pl

IMAGES_MULTIPLE = 16
"""Smallest number of images that fills whole bfloat16 tiles at each pixel. Networks pad batches to
a multiple of it."""
VMEM_BYTES = 15 << 20
"""VMEM that a kernel's blocks and scratch may take; a v4 core has 16 MiB."""


Problem = TypeVar("Problem")
Tile = TypeVar("Tile")


@functools.cache
def read_tiles(
  path: pathlib.Path, problem: type[Problem], tile: type[Tile]
) -> Mapping[tuple[Problem, str], Tile]:
  """Reads the tiles that `python -m profiling.kernels --sweep=OP --write_tiles` chose.

  Args:
    path: the op's tiles.json: a list of {"problem": fields, "direction": name, "tile": fields}.
    problem: frozen dataclass of the problem that a kernel solves.
    tile: dataclass of the tile.

  Returns:
    The tiles by problem and direction of the pass.
  """
  return {
    (problem(**entry["problem"]), entry["direction"]): tile(**entry["tile"])
    for entry in json.loads(path.read_text())
  }


def check_multiples(*parts: tuple[str, int, int]) -> None:
  """Checks that tiles divide the work.

  Args:
    *parts: a dimension's name, its size, and the size of one part of it.

  Raises:
    ValueError: a part is less than 1 or does not divide the whole.
  """
  for what, whole, part in parts:
    if part < 1 or whole % part:
      raise ValueError(f"{what}: {whole} is not a multiple of {part}")


def divisors(n: int, *, of: int = 1) -> list[int]:
  """Returns the divisors of `n` that are multiples of `of`, the smallest first."""
  return [i for i in range(of, n + 1, of) if n % i == 0]


def rows_of_blocks(rows: int, *, row_bytes: int, bytes_max: int, of: int) -> int:
  """Returns the number of rows of blocks that are as large as fits; both cores get one if possible.

  Args:
    rows: number of rows of the whole array; some multiple of `of` that divides it must fit.
    row_bytes: size of a row.
    bytes_max: largest size of a block.
    of: number of rows of which blocks have a multiple.
  """
  fitting = (n for n in divisors(rows, of=of) if n * row_bytes <= bytes_max)
  return max((n for n in fitting if n < rows), default=rows)


def result_like(operand: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
  """Describes a kernel's result that varies over the same mesh axes as an operand.

  Inside `shard_map`, results must declare the axes over which they vary.

  Args:
    operand: operand of the kernel.
    shape: shape of the result.
    dtype: dtype of the result.
  """
  varying = jax.typeof(operand).manual_axis_type
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)


def cost_estimate(
  operands: Sequence[jax.Array],
  results: Sequence[jax.ShapeDtypeStruct],
  *,
  macs: int = 0,
  transcendentals: int = 0,
) -> pl.CostEstimate:
  """Estimates a kernel's cost, from which XLA decides what to copy while the kernel runs.

  Without an estimate, XLA assumes that a kernel costs nothing and fetches the weights of later
  operations only after the kernel has ended.

  Args:
    operands: arrays that are read once.
    results: arrays that are written once.
    macs: number of multiply-adds.
    transcendentals: number of evaluations of erf, tanh, exp and the like.
  """
  size_bytes = sum(x.size * x.dtype.itemsize for x in (*operands, *results))
  return pl.CostEstimate(flops=2 * macs, transcendentals=transcendentals, bytes_accessed=size_bytes)
