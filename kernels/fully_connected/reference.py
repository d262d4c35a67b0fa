"""Reference implementation of a fully connected layer; this is the specification of the op."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.fully_connected.formulas import layer, rounded_product


def fully_connected_layer(
  x: Float[Array, "n i"],
  weight: Float[Array, "i o"],
  bias: Float[Array, " o"],
  *,
  dtype: jnp.dtype,
) -> Float[Array, "n o"]:
  """Returns x @ weight + bias, in float32.

  Args:
    x: input.
    weight: weight.
    bias: bias.
    dtype: dtype to which the operands of the product are rounded for the MXU; sums are float32.
  """
  return layer(x, weight, bias, dtype=dtype, product=rounded_product)
