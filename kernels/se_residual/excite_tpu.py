"""The gradients of squeeze-excite's second fully connected layer as a Pallas TPU kernel.

A batch has few images, so the layer costs what it takes to read its weight and to write the
weight's gradient. XLA writes products of so few images at a quarter of HBM's bandwidth. The first
layer is left to XLA: many parameter shards store its weight by output, and XLA would copy it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import LANES
from kernels.tpu import VMEM_BYTES, result_like


class Refs(NamedTuple):
  """The refs of the kernel; i are the inputs of one block."""

  x_ref: Any  # [n, i]
  cotangent_ref: Any  # [n, o]
  weight_ref: Any  # [i, o]
  x_cotangent_ref: Any  # [n, i], float32
  weight_gradient_ref: Any  # [i, o]


def covers(images: int, inputs: int, outputs: int, itemsize: int) -> bool:
  """Returns whether the kernel's blocks fit VMEM.

  Args:
    images: number of images.
    inputs: number of inputs of the layer.
    outputs: number of outputs of the layer.
    itemsize: bytes per element of the weight.
  """
  block = _inputs_of_block(inputs)
  weights = 2 * block * outputs * itemsize
  values = images * ((block + outputs) * itemsize + 4 * block)
  # There are two of each block, and the weight's gradient is float32 before it is rounded.
  return 2 * (weights + values) + 4 * block * outputs <= VMEM_BYTES


# Under jit, this is traced only once for all equal blocks of the network.
@jax.jit
def layer_gradients(
  x: Float[Array, "n i"], cotangent: Float[Array, "n o"], weight: Float[Array, "i o"]
) -> tuple[Float[Array, "n i"], Float[Array, "i o"]]:
  """Returns the gradients of x @ weight with respect to x, in float32, and to the weight.

  All operands have the dtype in which the matrix units multiply; sums are float32.

  Args:
    x: values of the layer's inputs.
    cotangent: cotangent of the layer's results.
    weight: weight of the layer, whose gradient has its dtype.
  """
  images, outputs = cotangent.shape
  inputs = weight.shape[0]
  block = _inputs_of_block(inputs)
  of_inputs = pl.BlockSpec((images, block), lambda step: (0, step))
  of_weight = pl.BlockSpec((block, outputs), lambda step: (step, 0))
  written = call(
    _body,
    Refs(
      x_ref=Operand(x, of_inputs),
      cotangent_ref=Operand(cotangent, pl.BlockSpec((images, outputs), lambda step: (0, 0))),
      weight_ref=Operand(weight, of_weight),
      x_cotangent_ref=Result(result_like(cotangent, x.shape, jnp.float32), of_inputs),
      weight_gradient_ref=Result(result_like(cotangent, weight.shape, weight.dtype), of_weight),
    ),
    name="excite_gradients",
    grid=(inputs // block,),
    dimension_semantics=("parallel",),
    macs=2 * images * inputs * outputs,
  )
  return written.x_cotangent_ref, written.weight_gradient_ref


def _inputs_of_block(inputs: int) -> int:
  """Returns the number of inputs of a block: the lanes, or all where lanes do not divide them."""
  return inputs if inputs % LANES else LANES


def _body(refs: Refs):
  x, cotangent = refs.x_ref[...], refs.cotangent_ref[...]

  def product(a, b, axis):
    dimensions = ((axis,), (axis,)), ((), ())
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)

  refs.x_cotangent_ref[...] = product(cotangent, refs.weight_ref[...], 1)
  gradient = product(x, cotangent, 0)
  refs.weight_gradient_ref[...] = gradient.astype(refs.weight_gradient_ref.dtype)
