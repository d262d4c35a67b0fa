"""Defines the normalizer-free residual block (paper B, section 2 and figure 5).

A block computes, with f the scaled activation and all convolutions weight-standardized,

    z        = beta * f(x)
    branch   = conv2(f(conv1b(f(conv1(f(conv0(z)))))))             1x1, 3x3, 3x3, 1x1
    gate     = 2 * sigmoid(excite(relu(squeeze(mean(branch)))))    squeeze-excite
    shortcut = conv_shortcut(average_pool(z)) in a transition block, x in all others
    output   = shortcut + alpha * keep * skip_gain * gate * branch

beta is 1 / the expected standard deviation of x (in the papers, beta is the standard deviation, and
they divide by it). alpha is a constant, 0.2. skip_gain is a parameter that starts at 0, so that a
new block is its shortcut. keep is 0 for the examples whose branch stochastic depth drops, otherwise
1.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import kernels
from nfnet.activations import ScaledActivation
from nfnet.layers import Linear, ScaledWSConv, declare
from nfnet.variants import BlockShape


class SqueezeExcite(nnx.Module):
  """Declares the parameters of the gate: two fully connected layers."""

  def __init__(self, channels: int, squeeze_channels: int):
    self.squeeze = Linear(channels, squeeze_channels)
    self.excite = Linear(squeeze_channels, channels)


class Block(nnx.Module):
  """Computes one residual block; the module's docstring has the equations.

  Beta and the mask of stochastic depth, in which blocks of equal shape differ, are arguments of the
  call, so that a scan can run such blocks as one program.

  Args:
    shape: channels, groups and stride.
    activation: scaled activation f.
    alpha: weight of the residual branch.
    standardization: how filters are standardized, see `kernels.Standardization`.
    implementation: implementation of the ops.
  """

  def __init__(
    self,
    shape: BlockShape,
    *,
    activation: ScaledActivation,
    alpha: float,
    standardization: kernels.Standardization,
    implementation: kernels.Implementation,
  ):
    def conv(in_channels, out_channels, filter_pixels, **arguments):
      return ScaledWSConv(
        in_channels,
        out_channels,
        filter_pixels=filter_pixels,
        standardization=standardization,
        implementation=implementation,
        **arguments,
      )

    width, groups = shape.bottleneck_channels, shape.groups
    self.conv0 = conv(shape.in_channels, width, 1)
    self.conv1 = conv(width, width, 3, stride=shape.stride, groups=groups)
    self.conv1b = conv(width, width, 3, groups=groups)
    self.conv2 = conv(width, shape.out_channels, 1)
    if shape.has_projection:
      self.conv_shortcut = conv(shape.in_channels, shape.out_channels, 1, pool=shape.stride > 1)
    self.squeeze_excite = SqueezeExcite(shape.out_channels, shape.squeeze_channels)
    self.skip_gain = declare()
    self.has_projection = shape.has_projection
    self.activation = activation
    self.alpha = alpha
    self.standardization = standardization
    self.implementation = implementation

  def __call__(
    self,
    x: Float[Array, "h w n c"] | kernels.PendingSum,
    *,
    beta: Float[Array, ""],
    keep: Float[Array, " n"] | None,
  ) -> Float[Array, "h2 w2 n o"] | kernels.PendingSum:
    """Returns the block's output.

    With kernels and standardized filters, this is a sum that the next block's first convolution
    adds up while its matrix units are busy.

    Args:
      x: input.
      beta: 1 / the expected standard deviation of the input.
      keep: 0 for examples whose branch stochastic depth drops, otherwise 1; None keeps all.
    """
    activation = self.activation
    entry = dict(activation=activation, beta=beta)
    # The shortcut takes the input from the branch: see `kernels.Convolution.input`.
    branch, shortcut = self.conv0(x, **entry, returns_input=True)
    if self.has_projection:
      shortcut = self.conv_shortcut(shortcut, **entry).result
    for conv in (self.conv1, self.conv1b):
      branch = conv(branch, activation=activation).result
    squeeze, excite = self.squeeze_excite.squeeze, self.squeeze_excite.excite
    gate = kernels.Gate(
      squeeze_weight=squeeze.weight[...],
      squeeze_bias=squeeze.bias[...],
      excite_weight=excite.weight[...],
      excite_bias=excite.bias[...],
    )
    weight, bias, skip_gain = (
      self.conv2.weight.get_value(),
      self.conv2.bias[...],
      self.skip_gain[...],
    )
    common = dict(
      keep=keep,
      activation=activation.function,
      alpha=self.alpha,
      implementation=self.implementation,
    )
    if isinstance(weight, kernels.StandardizedFilters):
      by_kernels = self.implementation == "pallas"
      op = kernels.standardized_conv_se if by_kernels else kernels.standardized_conv_se_residual
      return op(branch, weight, bias, shortcut, gate, skip_gain, **common)
    return kernels.conv_se_residual(
      branch,
      weight,
      self.conv2.gain[...],
      bias,
      shortcut,
      gate,
      skip_gain,
      input_scale=jnp.float32(activation.gain),
      standardization=self.standardization,
      **common,
    )

  def standardized(
    self,
    parameters: Mapping[str, Any],
    *,
    beta: Float[Array, ""],
    dtype: jnp.dtype,
    gradient_dtype: jnp.dtype | None,
  ) -> dict[str, Any]:
    """Returns the block's parameters with standardized filters in all of its convolutions.

    Args:
      parameters: parameters of the block.
      beta: 1 / the expected standard deviation of the block's input.
      dtype: compute dtype.
      gradient_dtype: dtype of the filters' gradient; see `kernels.standardize_filters`.
    """
    common = dict(activation=self.activation, dtype=dtype, gradient_dtype=gradient_dtype)
    betas = dict(conv0=beta, conv1=1.0, conv1b=1.0, conv2=1.0)
    if self.has_projection:
      betas["conv_shortcut"] = beta
    return {
      **parameters,
      **{
        name: getattr(self, name).standardized(parameters[name], beta=beta, **common)
        for name, beta in betas.items()
      },
    }
