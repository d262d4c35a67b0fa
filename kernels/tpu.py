"""What all Pallas TPU kernels have to know."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
from jax.experimental import pallas as pl

LANES = 128
SUBLANES = 8
IMAGES_MULTIPLE = 16
"""Images of one pixel fill tiles of bfloat16."""
VMEM_BYTES = 15 << 20
"""Of the 16 MiB of a v4 core."""


Tile = TypeVar("Tile")


@functools.cache
def read_tiles(path: pathlib.Path, kind: type[Tile]) -> Mapping[tuple[str, str], Tile]:
  """The tiles that `python -m profiling.kernels --sweep=OP --write_tiles` has found.

  Args:
    path: of the file beside the op.
    kind: of tile.

  Returns:
    By the name of the kernel's work and the direction of the pass.
  """
  return {
    (entry["name"], entry["direction"]): kind(**entry["tile"])
    for entry in json.loads(path.read_text())
  }


def check_multiples(*parts: tuple[str, int, int]) -> None:
  """That tiles divide the work.

  Args:
    *parts: what is cut, how much of it there is, and how much a part has.

  Raises:
    ValueError: a part is less than 1, or parts do not add up to the whole.
  """
  for what, whole, part in parts:
    if part < 1 or whole % part:
      raise ValueError(f"{what}: {whole} is not a multiple of {part}")


def divisors(n: int, *, of: int = 1) -> list[int]:
  """Of `n`, that are multiples of `of`; the smallest first."""
  return [i for i in range(of, n + 1, of) if n % i == 0]


def result_like(operand: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
  """A kernel's result that differs over the mesh axes over which an operand does.

  Inside of `shard_map`, a result has to say so.

  Args:
    operand: of the kernel.
    shape: of the result.
    dtype: of the result.
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
  """What XLA should think of a kernel's cost when it decides what to copy behind it.

  Without one, XLA takes a kernel to cost nothing and fetches the weights of the operations after it
  only when it is over.

  Args:
    operands: each read once.
    results: each written once.
    macs: multiply-adds.
    transcendentals: erf, tanh, exp and the like.
  """
  size_bytes = sum(x.size * x.dtype.itemsize for x in (*operands, *results))
  return pl.CostEstimate(flops=2 * macs, transcendentals=transcendentals, bytes_accessed=size_bytes)
