"""Calls a Pallas TPU kernel whose refs have names.

Every kernel has one NamedTuple, `Refs`. Its caller puts an `Operand`, a `Result`, a scratch buffer
or None into each field; its body gets the same NamedTuple with a ref in place of each of these. A
ref's array, block and name are thus written down once, side by side.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.tpu import cost_estimate

Refs = TypeVar("Refs", bound=tuple)


class Operand(NamedTuple):
  """An array that a kernel reads.

  Attributes:
    array: the whole array.
    spec: the block of the array that one step of the grid sees.
  """

  array: jax.Array
  spec: pl.BlockSpec


class Result(NamedTuple):
  """An array that a kernel writes.

  Attributes:
    shape: shape and dtype of the whole array (`kernels.tpu.result_like`).
    spec: the block of the array that one step of the grid sees.
    in_place_of: operand in whose memory the result is written, or None.
  """

  shape: jax.ShapeDtypeStruct
  spec: pl.BlockSpec
  in_place_of: Operand | None = None


def call(
  body: Callable[[Refs], None],
  refs: Refs,
  *,
  name: str,
  indices: jax.Array | None = None,
  grid: tuple[int, ...] = (),
  dimension_semantics: Sequence[str] | None = None,
  macs: int = 0,
  transcendentals: int = 0,
  has_cost_estimate: bool = True,
) -> Refs:
  """Runs a kernel.

  Args:
    body: function of `refs` with a ref in place of each operand, result and scratch buffer.
    refs: NamedTuple of operands, results, scratch buffers, None, and tuples of these.
    name: name of the kernel in the compiler's output.
    indices: int32 vector that index maps get as their last argument, or None.
    grid: number of steps along each axis; () runs the body once.
    dimension_semantics: "parallel" or "arbitrary" for each axis of the grid; None for no grid.
    macs: number of multiply-adds in the whole kernel.
    transcendentals: number of evaluations of erf, tanh, exp and the like in the whole kernel.
    has_cost_estimate: whether XLA is told the cost (see `kernels.tpu.cost_estimate`).

  Returns:
    `refs` with an array in place of each result and None in place of all else.
  """
  leaves, tree = jax.tree.flatten(refs, is_leaf=lambda leaf: isinstance(leaf, Operand | Result))
  operands = [leaf for leaf in leaves if isinstance(leaf, Operand)]
  results = [leaf for leaf in leaves if isinstance(leaf, Result)]
  scratch = [leaf for leaf in leaves if not isinstance(leaf, Operand | Result)]

  def in_fields(of_operands: Iterable, of_results: Iterable, of_scratch: Iterable) -> Refs:
    of_operands, of_results, of_scratch = iter(of_operands), iter(of_results), iter(of_scratch)
    values = []
    for leaf in leaves:
      match leaf:
        case Operand():
          values.append(next(of_operands))
        case Result():
          values.append(next(of_results))
        case _:
          values.append(next(of_scratch))
    return jax.tree.unflatten(tree, values)

  scalars = [] if indices is None else [indices]

  def kernel(*flat):
    flat = flat[len(scalars) :]
    first, last = len(operands), len(operands) + len(results)
    body(in_fields(flat[:first], flat[first:last], flat[last:]))

  positions = {id(operand): i for i, operand in enumerate(operands)}
  aliases = {
    len(scalars) + positions[id(result.in_place_of)]: i
    for i, result in enumerate(results)
    if result.in_place_of is not None
  }
  shapes = [result.shape for result in results]
  cost = None
  if has_cost_estimate:
    # An array that is passed as several operands is counted once.
    arrays = {id(operand.array): operand.array for operand in operands}.values()
    cost = cost_estimate(list(arrays), shapes, macs=macs, transcendentals=transcendentals)
  written = pl.pallas_call(
    kernel,
    out_shape=shapes,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=grid,
      in_specs=[operand.spec for operand in operands],
      out_specs=[result.spec for result in results],
      scratch_shapes=scratch,
    ),
    input_output_aliases=aliases,
    compiler_params=pltpu.CompilerParams(dimension_semantics=dimension_semantics),
    cost_estimate=cost,
    name=name,
  )(*scalars, *(operand.array for operand in operands))
  return in_fields([None] * len(operands), written, [None] * len(scratch))
