"""Defines layers: the parameters that each has and the op that applies them.

A layer only declares the shapes of its parameters. Their values live outside, in nested
dictionaries (see `nfnet.model.apply` and `nfnet.initialization`), and are bound to the layers while
a program is traced. Building a network of any size therefore takes no time, and no value is ever
drawn on the wrong device.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import kernels
from nfnet.activations import ScaledActivation


class Parameter(nnx.Param):
  """Holds a parameter's shape until `nfnet.model.bind` or `apply` gives it a value."""

  def __getitem__(self, index: Any) -> Array:
    """Returns the value, or a part of it.

    Raises:
      ValueError: there is no value.
    """
    if isinstance(self.get_value(), jax.ShapeDtypeStruct):
      raise ValueError(
        "the network declares the shapes of its parameters and holds no values: call "
        "nfnet.apply(model, parameters, images), or nfnet.bind(model, parameters)(images)"
      )
    return super().__getitem__(index)


# Outside of programs it is compiled once for all layers of a shape; in one, it leaves no trace.
_standardize_filters = jax.jit(
  kernels.standardize_filters,
  static_argnames=("dtype", "gradient_dtype", "standardization", "implementation"),
  inline=True,
)


def declare(*shape: int) -> Parameter:
  """Returns a float32 parameter without a value."""
  return Parameter(jax.ShapeDtypeStruct(shape, jnp.float32))


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
    x: Float[Array, "h w n c"] | kernels.PendingSum,
    *,
    activation: ScaledActivation | None = None,
    beta: Float[Array, ""] | float = 1.0,
    returns_input: bool = False,
  ) -> kernels.Convolution:
    """Returns conv(pool(beta * activation(x))) + bias; without an activation, beta must be 1.

    Filters that `standardized` has made contain beta and the activation's gain already. Only plain
    1x1 convolutions with such filters take a sum that has yet to be added up.
    """
    weight = self.weight.get_value()
    if isinstance(x, kernels.PendingSum):
      return kernels.standardized_convolution_of_sum(
        x,
        weight,
        self.bias[...],
        activation=activation and activation.function,
        returns_input=returns_input,
        implementation=self.implementation,
      )
    common = dict(
      stride=self.stride,
      groups=self.groups,
      pool=self.pool,
      activation=activation and activation.function,
      returns_input=returns_input,
      implementation=self.implementation,
    )
    if isinstance(weight, kernels.StandardizedFilters):
      return kernels.standardized_convolution(x, weight, self.bias[...], **common)
    return kernels.scaled_ws_convolution(
      x,
      weight,
      self.gain[...],
      self.bias[...],
      input_scale=_input_scale(activation, beta),
      standardization=self.standardization,
      **common,
    )

  def standardized(
    self,
    parameters: Mapping[str, Array | np.ndarray],
    *,
    activation: ScaledActivation | None = None,
    beta: Float[Array, ""] | float = 1.0,
    dtype: jnp.dtype,
    gradient_dtype: jnp.dtype | None,
  ) -> dict[str, Any]:
    """Returns the layer's parameters with standardized filters in place of the weight.

    Args:
      parameters: weight, gain and bias.
      activation: activation of the layer's input, or None.
      beta: factor of the activated input.
      dtype: compute dtype.
      gradient_dtype: dtype of the filters' gradient; see `kernels.standardize_filters`.
    """
    filters = _standardize_filters(
      parameters["weight"],
      parameters["gain"],
      _input_scale(activation, beta),
      dtype=dtype,
      gradient_dtype=gradient_dtype,
      standardization=self.standardization,
      implementation=self.implementation,
    )
    return {**parameters, "weight": filters}


def _input_scale(
  activation: ScaledActivation | None, beta: Float[Array, ""] | float
) -> Float[Array, ""] | None:
  return activation and jnp.float32(beta * activation.gain)


class Linear(nnx.Module):
  """Declares the weight [in, out] and the bias [out] of a fully connected layer."""

  def __init__(self, in_features: int, out_features: int):
    self.weight = declare(in_features, out_features)
    self.bias = declare(out_features)
