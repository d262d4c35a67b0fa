"""The formulas that the reference and the kernel's caller share."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Product = Callable[..., Float[Array, "n o"]]
"""`rounded_product`, or what computes the same from the same arguments."""


def rounded_product(
  x: Float[Array, "n i"], weight: Float[Array, "i o"], *, dtype: jnp.dtype
) -> Float[Array, "n o"]:
  """Returns x @ weight of rounded operands, in float32.

  Args:
    x: input.
    weight: weight.
    dtype: dtype to which the operands are rounded for the MXU; sums are float32.
  """
  return jnp.dot(x.astype(dtype), weight.astype(dtype), preferred_element_type=jnp.float32)


def layer(
  x: Float[Array, "n i"],
  weight: Float[Array, "i o"],
  bias: Float[Array, " o"],
  *,
  dtype: jnp.dtype,
  product: Product,
) -> Float[Array, "n o"]:
  """Returns x @ weight + bias, in float32.

  Args:
    x: input.
    weight: weight.
    bias: bias.
    dtype: dtype to which the operands of the product are rounded.
    product: computes the product.
  """
  return product(x, weight, dtype=dtype) + bias.astype(jnp.float32)[None, :]
