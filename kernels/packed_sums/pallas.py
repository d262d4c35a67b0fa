"""Packed sums with implementation="pallas": what the kernel covers, and how it is called."""

from jaxtyping import Array, Float, Int

from kernels.layout import LANES
from kernels.packed_sums.add_tpu import add
from kernels.packed_sums.formulas import Part, layout_of, shape_of_part
from kernels.tpu import VMEM_BYTES


def add_parts(
  packed: tuple[Float[Array, "_ _ 128"], ...] | None,
  gradients: tuple[Float[Array, "..."], ...],
  indices: Int[Array, " gradients"],
  *,
  parts: tuple[Part, ...],
  unpacks: bool,
) -> tuple[Float[Array, "..."], ...]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: the parts have no packed layout, or do not fit VMEM.
  """
  itemsize = gradients[0].dtype.itemsize
  layout = layout_of(tuple(gradient.shape for gradient in gradients), parts, itemsize)
  # There are two of each block, of what is added to, what is added, and the sums.
  if 3 * 2 * sum(layout.rows) * LANES * itemsize > VMEM_BYTES:
    raise NotImplementedError("parts that do not fit VMEM")
  sums = add(
    packed,
    tuple(
      gradient.reshape(block.whole)
      for gradient, block in zip(gradients, layout.blocks, strict=True)
    ),
    indices,
    layout=layout,
    unpacks=unpacks,
  )
  if not unpacks:
    return sums
  return tuple(
    x.reshape(shape_of_part(gradient.shape, part))
    for x, gradient, part in zip(sums, gradients, parts, strict=True)
  )
