"""The gradients of squeeze-excite's two fully connected layers as one Pallas TPU kernel.

A batch has few images, so the layers cost what it takes to read their weights and to write the
gradients of these, once each. XLA writes products of so few images at a quarter of HBM's bandwidth.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.tpu import LANES, VMEM_BYTES, result_like

_CORES = 2


class Refs(NamedTuple):
  """The refs of the kernel; s are the hidden channels of one block."""

  mean_ref: Any  # [n, c]
  hidden_ref: Any  # [n, s]
  cotangent_ref: Any  # [n, c]
  squeeze_weight_ref: Any  # [c, s]
  excite_weight_ref: Any  # [s, c]
  mean_cotangent_ref: Any  # [1, n, c], float32
  squeeze_weight_gradient_ref: Any  # [c, s]
  squeeze_bias_gradient_ref: Any  # [1, s], float32
  excite_weight_gradient_ref: Any  # [s, c]


class GateGradients(NamedTuple):
  """The gradients that the kernel computes.

  Attributes:
    mean: gradient of the mean over space, float32.
    squeeze_weight: gradient of the first layer's weight, in the weight's dtype.
    squeeze_bias: gradient of the first layer's bias, float32.
    excite_weight: gradient of the second layer's weight, in the weight's dtype.
  """

  mean: Float[Array, "n c"]
  squeeze_weight: Float[Array, "c s"]
  squeeze_bias: Float[Array, " s"]
  excite_weight: Float[Array, "s c"]


def covers(images: int, channels: int, hidden_channels: int, itemsize: int) -> bool:
  """Returns whether the kernel's blocks fit VMEM.

  Args:
    images: number of images.
    channels: number of channels.
    hidden_channels: number of channels between the two layers.
    itemsize: bytes per element of the weights.
  """
  block = _block_channels(hidden_channels)
  weights = 4 * channels * block * itemsize
  values = images * (2 * channels * itemsize + block * itemsize + channels * 4)
  # There are two of each block, and products are float32 before they are rounded.
  return 2 * (weights + values) + 4 * channels * (block + images) <= VMEM_BYTES


# Under jit, this is traced only once for all equal blocks of the network.
@jax.jit
def gate_gradients(
  mean: Float[Array, "n c"],
  hidden: Float[Array, "n s"],
  cotangent: Float[Array, "n c"],
  squeeze_weight: Float[Array, "c s"],
  excite_weight: Float[Array, "s c"],
) -> GateGradients:
  """Returns the gradients of relu(mean @ squeeze_weight + squeeze_bias) @ excite_weight.

  All operands have the dtype in which the matrix units multiply; sums are float32.

  Args:
    mean: mean of the branch over space.
    hidden: results of the first layer, behind the ReLU.
    cotangent: cotangent of the second layer's results.
    squeeze_weight: weight of the first layer.
    excite_weight: weight of the second layer.
  """
  images, channels = mean.shape
  hidden_channels = hidden.shape[1]
  block = _block_channels(hidden_channels)
  blocks = hidden_channels // block
  # Cores share the parts, each of which adds up a mean's cotangent of its own.
  parts = blocks if blocks % _CORES else _CORES
  steps = blocks // parts

  def of_hidden(rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((rows, block), lambda part, step: (0, part * steps + step))

  whole = pl.BlockSpec((images, channels), lambda part, step: (0, 0))
  excite = pl.BlockSpec((block, channels), lambda part, step: (part * steps + step, 0))
  of_part = pl.BlockSpec((1, images, channels), lambda part, step: (part, 0, 0))

  def result(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, spec: pl.BlockSpec) -> Result:
    return Result(result_like(cotangent, shape, dtype), spec)

  written = call(
    _body,
    Refs(
      mean_ref=Operand(mean, whole),
      hidden_ref=Operand(hidden, of_hidden(images)),
      cotangent_ref=Operand(cotangent, whole),
      squeeze_weight_ref=Operand(squeeze_weight, of_hidden(channels)),
      excite_weight_ref=Operand(excite_weight, excite),
      mean_cotangent_ref=result((parts, images, channels), jnp.float32, of_part),
      squeeze_weight_gradient_ref=result(
        squeeze_weight.shape, squeeze_weight.dtype, of_hidden(channels)
      ),
      squeeze_bias_gradient_ref=result((1, hidden_channels), jnp.float32, of_hidden(1)),
      excite_weight_gradient_ref=result(excite_weight.shape, excite_weight.dtype, excite),
    ),
    name="gate_gradients",
    grid=(parts, steps),
    dimension_semantics=("parallel", "arbitrary"),
    macs=4 * images * channels * hidden_channels,
  )
  return GateGradients(
    mean=jnp.sum(written.mean_cotangent_ref, axis=0),
    squeeze_weight=written.squeeze_weight_gradient_ref,
    squeeze_bias=written.squeeze_bias_gradient_ref[0],
    excite_weight=written.excite_weight_gradient_ref,
  )


def _block_channels(hidden_channels: int) -> int:
  """Returns the number of hidden channels of a block: lanes, or all where lanes do not divide."""
  return hidden_channels if hidden_channels % LANES else LANES


def _body(refs: Refs):
  @pl.when(pl.program_id(1) == 0)
  def _():
    refs.mean_cotangent_ref[...] = jnp.zeros_like(refs.mean_cotangent_ref)

  mean, hidden, cotangent = refs.mean_ref[...], refs.hidden_ref[...], refs.cotangent_ref[...]
  over_images, over_last = ((0,), (0,)), ((1,), (1,))
  refs.excite_weight_gradient_ref[...] = _product(hidden, cotangent, over_images).astype(
    refs.excite_weight_gradient_ref.dtype
  )
  of_hidden = _product(cotangent, refs.excite_weight_ref[...], over_last)
  of_hidden = jnp.where(hidden > 0, of_hidden, 0.0)
  refs.squeeze_bias_gradient_ref[...] = jnp.sum(of_hidden, axis=0, keepdims=True)
  of_hidden = of_hidden.astype(mean.dtype)
  refs.squeeze_weight_gradient_ref[...] = _product(mean, of_hidden, over_images).astype(
    refs.squeeze_weight_gradient_ref.dtype
  )
  refs.mean_cotangent_ref[0] += _product(of_hidden, refs.squeeze_weight_ref[...], over_last)


def _product(a: Array, b: Array, axes: tuple[tuple[int], tuple[int]]) -> Array:
  return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)
