"""The product of a fully connected layer, of whose derivative a Pallas kernel computes a part.

XLA computes the product and the gradient of the input. The kernel computes the gradient of a weight
in bfloat16. For one in float32, XLA can round the gradient for its way to other devices where it
computes it, which is why such weights are left to XLA.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.fully_connected.formulas import rounded_product
from kernels.fully_connected.gradient_tpu import weight_gradient
from kernels.fully_connected.tile import Blocks, choose


def product(
  x: Float[Array, "n i"], weight: Float[Array, "i o"], *, dtype: jnp.dtype
) -> Float[Array, "n o"]:
  """Computes `formulas.rounded_product`, with the kernel where it covers the weight's gradient."""
  if weight.dtype == dtype == jnp.bfloat16:
    try:
      blocks = choose(*x.shape, weight.shape[1], weight.dtype.itemsize)
    except NotImplementedError:
      pass
    else:
      return _product(blocks, x.astype(dtype), weight)
  return rounded_product(x, weight, dtype=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(blocks: Blocks, x, weight):
  del blocks
  return rounded_product(x, weight, dtype=weight.dtype)


def _product_forward(blocks: Blocks, x, weight):
  del blocks
  result, pull_back = jax.vjp(lambda x: rounded_product(x, weight, dtype=weight.dtype), x)
  return result, (x, pull_back)


def _product_backward(blocks: Blocks, residuals, cotangent):
  x, pull_back = residuals
  # XLA's own product rounds the cotangent, too.
  gradient = weight_gradient(x, cotangent.astype(x.dtype), blocks=blocks)
  return *pull_back(cotangent), gradient


_product.defvjp(_product_forward, _product_backward)
