"""Adds parts of several gradients to packed sums, as one Pallas TPU kernel.

The parts of a segment are small, and an operation on each would take longer to start than HBM needs
for it. Each step of the grid takes a block of every part.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from kernels.call import Operand, Result, call
from kernels.layout import LANES
from kernels.packed_sums.formulas import Block, Layout
from kernels.tpu import result_like


class _Refs(NamedTuple):
  """Refs of the kernel: blocks of one step.

  Attributes:
    packed: packed sums so far, or None.
    gradients: blocks of the gradients' parts.
    sums: packed sums, or sums of each gradient's part.
  """

  packed: tuple | None
  gradients: tuple
  sums: tuple


# Under jit, this is traced only once for all equal segments.
@functools.partial(jax.jit, static_argnames=("layout", "unpacks"))
def add(
  packed: tuple[Float[Array, "_ _ 128"], ...] | None,
  gradients: tuple[Float[Array, "_ _ _"], ...],
  indices: Int[Array, " gradients"],
  *,
  layout: Layout,
  unpacks: bool,
) -> tuple[Float[Array, "_ _ _"], ...]:
  """Returns packed sums, in place, or the sums of each gradient's part.

  Args:
    packed: packed sums, by number; None for zeros.
    gradients: whole gradients, with their leading axes as one.
    indices: which part of each gradient is added, int32.
    layout: how the parts lie in the packed arrays.
    unpacks: whether the sums of each gradient's parts are returned on their own.
  """
  like = gradients[0]
  packed_specs = [
    pl.BlockSpec((None, rows, LANES), lambda step, indices: (step, 0, 0)) for rows in layout.rows
  ]
  operands = packed and tuple(map(Operand, packed, packed_specs))
  if unpacks:
    sums = tuple(
      Result(result_like(like, block.part, like.dtype), pl.BlockSpec(block.block, _step_of(block)))
      for block in layout.blocks
    )
  else:
    sums = tuple(
      Result(
        result_like(like, layout.packed_shape(array), like.dtype),
        spec,
        in_place_of=operands and operands[array],
      )
      for array, spec in enumerate(packed_specs)
    )
  return call(
    functools.partial(_body, blocks=layout.blocks, unpacks=unpacks),
    _Refs(
      packed=operands,
      gradients=tuple(
        Operand(gradient, pl.BlockSpec(block.block, _part_and_step_of(block, i)))
        for i, (gradient, block) in enumerate(zip(gradients, layout.blocks, strict=True))
      ),
      sums=sums,
    ),
    name="packed_sums",
    indices=indices,
    grid=(layout.steps,),
    dimension_semantics=("parallel",),
    # XLA would be told that the whole gradients are read.
    has_cost_estimate=False,
  ).sums


def _step_of(block: Block) -> Callable:
  """Returns the index map of the blocks of a part."""
  if block.step_axis == 0:
    return lambda step, indices: (step, 0, 0)
  return lambda step, indices: (0, step, 0)


def _part_and_step_of(block: Block, i: int) -> Callable:
  """Returns the index map of the blocks of gradient `i`, of the part that `indices` names."""
  steps_of_part = block.part[1] // block.block[1] if block.step_axis == 1 else 1

  def index_map(step, indices):
    leading, row, _ = _step_of(block)(step, indices)
    if block.part_axis == 1:
      return leading, indices[i] * steps_of_part + row, 0
    return leading, row, indices[i]

  return index_map


def _body(refs: _Refs, *, blocks: tuple[Block, ...], unpacks: bool):
  """Adds the blocks of one step."""
  for block, gradient_ref, i in zip(blocks, refs.gradients, itertools.count()):
    leading, rows, columns = block.block
    first = block.first_row
    for start, index in itertools.product(range(0, columns, LANES), range(leading)):
      in_packed = slice(first, first + rows)
      in_block = index, slice(None), slice(start, start + LANES)
      first += rows
      total = gradient_ref[in_block]
      if refs.packed is not None:
        # A v4 core adds in float32 only.
        total = total.astype(jnp.float32) + refs.packed[block.array][in_packed].astype(jnp.float32)
      total = total.astype(gradient_ref.dtype)
      if unpacks:
        refs.sums[i][in_block] = total
      else:
        refs.sums[block.array][in_packed] = total
