"""The public op: adds parts of gradients to sums that travel packed."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kernels.arguments import (
  check_arrays,
  check_floats,
  check_options,
  check_sequence,
  check_type,
  shown,
)
from kernels.dispatch import Implementation, dispatch
from kernels.layout import LANES, has_symbolic_dimension
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
    ValueError: an argument is of another kind, or gradients, indices and parts do not fit together.
    NotImplementedError: the parts have no packed layout (`kernels.packed_sums.formulas.covers`),
      or a gradient has a symbolic size.
  """
  check_sequence("gradients", gradients, None, "arrays")
  for i, gradient in enumerate(gradients):
    check_floats(f"gradients[{i}]", gradient)
  check_sequence("parts", parts, len(gradients), "of kernels.packed_sums.formulas.Part")
  for i, (gradient, part) in enumerate(zip(gradients, parts, strict=True)):
    check_type(f"parts[{i}]", part, Part, "from kernels.packed_sums.formulas")
    if not _fits(part, gradient):
      raise ValueError(
        f"parts[{i}] is {part}, which does not divide a gradient of the shape "
        f"{list(gradient.shape)}"
      )
  if packed is not None:
    count = 1 + max(part.array for part in parts)
    check_sequence("packed", packed, count, "arrays, from add_parts")
    check_arrays(**{f"packed[{i}]": (array, f"_ _ {LANES}") for i, array in enumerate(packed)})
  if not hasattr(indices, "dtype") or not jnp.issubdtype(indices.dtype, jnp.integer):
    raise ValueError(f"indices is {shown(indices)}; must be an array of int32")
  if np.shape(indices) != (len(gradients),):
    raise ValueError(
      f"indices has the shape {list(np.shape(indices))}; must be [{len(gradients)}], one for each "
      "gradient"
    )
  check_options(unpacks=unpacks, implementation=implementation)
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


def _fits(part: Part, gradient: Any) -> bool:
  return (
    all(isinstance(field, int) for field in part)
    and 0 <= part.axis < gradient.ndim
    and part.parts >= 1
    and part.array >= 0
  )
