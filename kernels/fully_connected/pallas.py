"""Fully connected layers with implementation="pallas"."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.fully_connected.formulas import layer
from kernels.fully_connected.vjp import product


def fully_connected_layer(
  x: Float[Array, "n i"],
  weight: Float[Array, "i o"],
  bias: Float[Array, " o"],
  *,
  dtype: jnp.dtype,
) -> Float[Array, "n o"]:
  """Computes what the reference computes, from the same arguments."""
  return layer(x, weight, bias, dtype=dtype, product=product)
