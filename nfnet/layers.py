"""Defines layers: the parameters that each has and the op that applies them.

A layer only declares the shapes of its parameters. Their values live outside, in nested
dictionaries (see `nfnet.model.apply` and `nfnet.initialization`), and are bound to the layers while
a program is traced. Building a network of any size therefore takes no time, and no value is ever
drawn on the wrong device.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import kernels
from nfnet.activations import ScaledActivation


def declare(*shape: int) -> nnx.Param:
  """Returns a float32 parameter without a value."""
  return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


class ScaledWSConv(nnx.Module):
  """Convolves HWNC activations with filters that have scaled weight standardization.

  Args:
    in_channels: number of input channels.
    out_channels: number of output channels.
    filter_pixels: side of the filters.
    stride: stride in both directions.
    groups: number of channel groups.
    pool: whether 2x2 average pooling comes before the convolution.
    standardization: how filters are standardized, see `kernels.Standardization`.
    implementation: implementation of the op.
  """

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    *,
    filter_pixels: int,
    stride: int = 1,
    groups: int = 1,
    pool: bool = False,
    standardization: kernels.Standardization,
    implementation: kernels.Implementation,
  ):
    self.weight = declare(filter_pixels, filter_pixels, in_channels // groups, out_channels)
    self.gain = declare(out_channels)
    self.bias = declare(out_channels)
    self.stride = stride
    self.groups = groups
    self.pool = pool
    self.standardization = standardization
    self.implementation = implementation

  def __call__(
    self,
    x: Float[Array, "h w n c"],
    *,
    activation: ScaledActivation | None = None,
    beta: Float[Array, ""] | float = 1.0,
    returns_input: bool = False,
  ) -> kernels.Convolution:
    """Returns conv(pool(beta * activation(x))) + bias; without an activation, beta must be 1."""
    return kernels.scaled_ws_convolution(
      x,
      self.weight[...],
      self.gain[...],
      self.bias[...],
      stride=self.stride,
      groups=self.groups,
      pool=self.pool,
      activation=activation and activation.function,
      input_scale=activation and jnp.float32(beta * activation.gain),
      returns_input=returns_input,
      standardization=self.standardization,
      implementation=self.implementation,
    )


class Linear(nnx.Module):
  """Declares the weight [in, out] and the bias [out] of a fully connected layer."""

  def __init__(self, in_features: int, out_features: int):
    self.weight = declare(in_features, out_features)
    self.bias = declare(out_features)
