"""The residual block (paper B, section 2 and figure 5)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import kernels
from nfnet.activations import ScaledActivation
from nfnet.layers import Linear, ScaledWSConv, declare
from nfnet.variants import BlockShape


class SqueezeExcite(nnx.Module):
  """Parameters of the gate: two fully connected layers."""

  def __init__(self, channels: int, squeeze_channels: int):
    self.squeeze = Linear(channels, squeeze_channels)
    self.excite = Linear(squeeze_channels, channels)


class Block(nnx.Module):
  """1x1 -> grouped 3x3 -> grouped 3x3 -> 1x1 -> squeeze-excite, added to the shortcut.

  What differs between blocks of equal shape (beta and the mask of stochastic depth) is an argument
  of the call, so that a scan can run them as one program.

  Args:
    shape: channels, groups, stride.
    activation: scaled activation.
    alpha: weight of the branch.
    implementation: of the ops.
  """

  def __init__(
    self,
    shape: BlockShape,
    *,
    activation: ScaledActivation,
    alpha: float,
    implementation: kernels.Implementation,
  ):
    def conv(in_channels, out_channels, filter_pixels, **arguments):
      return ScaledWSConv(
        in_channels,
        out_channels,
        filter_pixels=filter_pixels,
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
    self.implementation = implementation

  def __call__(
    self,
    x: Float[Array, "h w n c"],
    *,
    beta: Float[Array, ""],
    keep: Float[Array, " n"] | None,
  ) -> Float[Array, "h2 w2 n o"]:
    """The block's output; `keep` is 0 where stochastic depth drops the branch, else 1."""
    activation = self.activation
    entry = dict(activation=activation, beta=beta)
    # The shortcut takes the input from the branch: see `kernels.Convolution.input`.
    branch, shortcut = self.conv0(x, **entry, returns_input=True)
    if self.has_projection:
      shortcut = self.conv_shortcut(shortcut, **entry).result
    for conv in (self.conv1, self.conv1b):
      branch = conv(branch, activation=activation).result
    gate = self.squeeze_excite
    return kernels.conv_se_residual(
      branch,
      self.conv2.weight[...],
      self.conv2.gain[...],
      self.conv2.bias[...],
      shortcut,
      kernels.Gate(
        squeeze_weight=gate.squeeze.weight[...],
        squeeze_bias=gate.squeeze.bias[...],
        excite_weight=gate.excite.weight[...],
        excite_bias=gate.excite.bias[...],
      ),
      self.skip_gain[...],
      activation=activation.function,
      input_scale=jnp.float32(activation.gain),
      keep=keep,
      alpha=self.alpha,
      implementation=self.implementation,
    )
