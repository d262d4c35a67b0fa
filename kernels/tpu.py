"""What all Pallas TPU kernels have to know."""

import jax

LANES = 128
SUBLANES = 8


def result_like(operand: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
  """A kernel's result that differs over the mesh axes over which an operand does.

  Inside of `shard_map`, a result has to say so.

  Args:
    operand: of the kernel.
    shape: of the result.
    dtype: of the result.
  """
  varying = jax.typeof(operand).manual_axis_type
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)
