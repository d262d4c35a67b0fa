"""The public op: adds parts of gradients to sums that travel packed."""

import functools

from jaxtyping import Array, Float, Int

from kernels.dispatch import Implementation, dispatch
from kernels.layout import has_symbolic_dimension
from kernels.packed_sums import pallas, reference
from kernels.packed_sums.formulas import Part


def add_parts(
  packed: tuple[Float[Array, "_ _ 128"], ...] | None,
  gradients: tuple[Float[Array, "..."], ...],
  indices: Int[Array, " gradients"],
  *,
  parts: tuple[Part, ...],
  unpacks: bool = False,
  implementation: Implementation = "reference",
) -> tuple[Float[Array, "..."], ...]:
  """Adds one part of each gradient to packed sums.

  This is `reference.add_parts`, which says what it computes. The order of the elements in packed
  sums depends on the shapes and parts alone.

  Args:
    packed: packed sums, by number, of what the same call with another index has returned; None for
      zeros.
    gradients: whole gradients, of one dtype.
    indices: which part of each gradient is added, int32.
    parts: what each gradient is divided into.
    unpacks: whether the sums of each gradient's parts are returned on their own.
    implementation: "reference" or "pallas".

  Returns:
    Packed sums by number or, if `unpacks`, sums in the shapes of the gradients' parts.

  Raises:
    NotImplementedError: the parts have no packed layout (`kernels.packed_sums.formulas.covers`),
      or a gradient has a symbolic size.
  """
  if any(has_symbolic_dimension(gradient.shape) for gradient in gradients):
    raise NotImplementedError("gradients of a symbolic size, which have no packed layout")
  options = dict(parts=parts, unpacks=unpacks)
  return dispatch(
    "packed_sums",
    implementation,
    reference=functools.partial(reference.add_parts, **options),
    kernel=functools.partial(pallas.add_parts, **options),
    arguments=(packed, gradients, indices),
  )
