"""The formula that the reference and the kernel's caller share."""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
