"""Reference implementation of packed sums; this is the specification of the op."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels.layout import LANES
from kernels.packed_sums.formulas import Block, Layout, Part, layout_of


def add_parts(
  packed: tuple[Float[Array, "_ _ 128"], ...] | None,
  gradients: tuple[Float[Array, "..."], ...],
  indices: Int[Array, " gradients"],
  *,
  parts: tuple[Part, ...],
  unpacks: bool,
) -> tuple[Float[Array, "..."], ...]:
  """Adds one part of each gradient to packed sums.

  Each sum of two is rounded to the gradients' dtype.

  Args:
    packed: packed sums, by number; None for zeros.
    gradients: whole gradients, of one dtype.
    indices: which part of each gradient is added.
    parts: what each gradient is divided into.
    unpacks: whether the sums of each gradient's parts are returned on their own.

  Returns:
    Packed sums by number or, if `unpacks`, sums in the shapes of the gradients' parts.

  Raises:
    NotImplementedError: the parts have no packed layout (`kernels.packed_sums.formulas.covers`).
  """
  shapes = tuple(gradient.shape for gradient in gradients)
  layout = layout_of(shapes, parts, gradients[0].dtype.itemsize)
  own = [
    jax.lax.dynamic_slice_in_dim(
      gradient, index * (size := gradient.shape[part.axis] // part.parts), size, part.axis
    )
    for gradient, index, part in zip(gradients, indices, parts, strict=True)
  ]
  if not unpacks:
    new = _packed(own, layout)
    return new if packed is None else tuple(map(jnp.add, packed, new))
  if packed is None:
    return tuple(own)
  return tuple(
    x + _unpacked(packed[block.array], block, layout.steps).reshape(x.shape)
    for x, block in zip(own, layout.blocks, strict=True)
  )


def _packed(parts: list[Float[Array, "..."]], layout: Layout) -> tuple[Float[Array, "..."], ...]:
  steps = [[] for _ in layout.rows]
  for part, block in zip(parts, layout.blocks, strict=True):
    steps[block.array].append(_in_steps(part, block, layout.steps))
  return tuple(jnp.concatenate(blocks, axis=1) for blocks in steps)


def _in_steps(part: Float[Array, "..."], block: Block, steps: int) -> Float[Array, "steps _ 128"]:
  """Returns a part as it lies in a packed array."""
  # [blocks, leading, blocks, rows, tiles of columns, 128], where one number of blocks is 1.
  x = part.reshape(*_axes(block), LANES)
  return x.transpose(0, 2, 4, 1, 3, 5).reshape(steps, block.rows, LANES)


def _unpacked(packed: Float[Array, "..."], block: Block, steps: int) -> Float[Array, "..."]:
  """Returns a part from where it lies in a packed array."""
  x = packed[:, block.first_row : block.first_row + block.rows]
  first, leading, second, rows, columns = _axes(block)
  x = x.reshape(first, second, columns, leading, rows, LANES)
  return x.transpose(0, 3, 1, 4, 2, 5).reshape(block.part)


def _axes(block: Block) -> tuple[int, int, int, int, int]:
  leading, rows, columns = block.block
  return (
    block.part[0] // leading,
    leading,
    block.part[1] // rows,
    rows,
    columns // LANES,
  )
