"""Computes a matrix product as a plain Pallas kernel: a yardstick for how kernels are profiled.

Its grid, its matrix products and the bytes that it copies can be counted by hand.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16

SIZE = 4096
BLOCK = 512


def matmul(
  x: BFloat16[Array, "size size"], y: BFloat16[Array, "size size"]
) -> BFloat16[Array, "size size"]:
  """Returns x @ y, summed in float32 in blocks of 512; the size is a multiple of 512."""
  size = x.shape[0]
  steps = size // BLOCK

  def body(x_ref, y_ref, out_ref, sum_ref):
    @pl.when(pl.program_id(2) == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)

    sum_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == steps - 1)
    def _():
      out_ref[...] = sum_ref[...].astype(out_ref.dtype)

  return pl.pallas_call(
    body,
    grid=(steps, steps, steps),
    in_specs=[
      pl.BlockSpec((BLOCK, BLOCK), lambda i, j, k: (i, k)),
      pl.BlockSpec((BLOCK, BLOCK), lambda i, j, k: (k, j)),
    ],
    out_specs=pl.BlockSpec((BLOCK, BLOCK), lambda i, j, k: (i, j)),
    out_shape=jax.ShapeDtypeStruct((size, size), jnp.bfloat16),
    scratch_shapes=[pltpu.VMEM((BLOCK, BLOCK), jnp.float32)],
    name="matmul",
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
  )(x, y)
