"""The public op: a fully connected layer."""

import functools

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from kernels.arguments import check_arrays, check_options
from kernels.dispatch import Implementation, dispatch
from kernels.fully_connected import pallas, reference
from kernels.mesh_axes import vary_alike


def fully_connected_layer(
  x: Float[Array, "n i"],
  weight: Float[Array, "i o"],
  bias: Float[Array, " o"],
  *,
  dtype: DTypeLike,
  implementation: Implementation = "reference",
) -> Float[Array, "n o"]:
  """Returns x @ weight + bias, in float32.

  This is `reference.fully_connected_layer`. On a TPU, a kernel computes the gradient of a weight in
  bfloat16.

  Args:
    x: input, [images, inputs].
    weight: weight, [inputs, outputs]; its gradient has its dtype.
    bias: bias, [outputs], float32.
    dtype: dtype to which the operands of the product are rounded for the MXU; sums are float32.
    implementation: "reference" or "pallas".

  Returns:
    [images, outputs], float32.

  Raises:
    ValueError: an argument is of another kind, or input, weight and bias do not fit together.
  """
  check_arrays(x=(x, "images inputs"), weight=(weight, "inputs outputs"), bias=(bias, "outputs"))
  check_options(dtype=dtype, implementation=implementation)
  options = dict(dtype=jnp.dtype(dtype))
  return dispatch(
    "fully_connected_layer",
    implementation,
    reference=functools.partial(reference.fully_connected_layer, **options),
    kernel=functools.partial(pallas.fully_connected_layer, **options),
    arguments=vary_alike(x, weight, bias),
  )
