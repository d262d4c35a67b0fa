"""Every call of an op in the published networks, by shape.

224 px; the sides of the activations follow. Depth changes how often a shape occurs, nothing else.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator

import jax

from nfnet.model import NFNet, parameter_shapes
from nfnet.variants import VARIANTS, get_variant

PIXELS = 224
NAMED_VARIANTS = tuple(
  name for name in VARIANTS if name.startswith("F") and name.rstrip("+")[1:].isdigit()
)
"""F0 to F7 and F0+ to F7+."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvShape:
  """One call of scaled_ws_conv.

  Attributes:
    pixels: side of the input.
    in_channels: of the input.
    out_channels: of the result.
    kernel_pixels: side of the filter.
    stride: of the convolution.
    groups: of channels.
    pool: 2x2 average pooling first.
    activates_input: gelu and beta on the input.
    activates_output: gelu on the result.
    differentiates_input: false for the first convolution.
  """

  pixels: int
  in_channels: int
  out_channels: int
  kernel_pixels: int
  stride: int = 1
  groups: int = 1
  pool: bool = False
  activates_input: bool = False
  activates_output: bool = False
  differentiates_input: bool = True

  @property
  def out_pixels(self) -> int:
    """Side of the result."""
    return self.pixels // (2 if self.pool else self.stride)

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass for one image."""
    taps = self.kernel_pixels**2 * self.in_channels // self.groups
    return self.out_pixels**2 * self.out_channels * taps

  @property
  def backward_macs(self) -> int:
    """Of the gradients of weight and input."""
    return self.macs * (2 if self.differentiates_input else 1)

  @property
  def label(self) -> str:
    """For a table."""
    parts = [
      f"conv {self.kernel_pixels}x{self.kernel_pixels}",
      f"{self.pixels}px",
      f"{self.in_channels}->{self.out_channels}",
    ]
    parts += [f"groups {self.groups}"] if self.groups > 1 else []
    parts += ["stride 2"] if self.stride > 1 else []
    parts += ["pooled"] if self.pool else []
    parts += ["gelu in"] if self.activates_input else []
    parts += ["gelu out"] if self.activates_output else []
    return " ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualShape:
  """One call of se_residual.

  Attributes:
    pixels: side of branch and shortcut.
    channels: of both.
    squeeze_channels: hidden width of the gate.
  """

  pixels: int
  channels: int
  squeeze_channels: int

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass for one image: the gate's two products."""
    return 2 * self.channels * self.squeeze_channels

  @property
  def backward_macs(self) -> int:
    """Of all gradients."""
    return 2 * self.macs

  @property
  def label(self) -> str:
    """For a table."""
    return f"se_residual {self.pixels}px {self.channels} squeeze {self.squeeze_channels}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateShape:
  """One call of sgd_agc.

  Attributes:
    shape: of the parameter.
    clipped: by AGC; the classifier's weight is not.
  """

  shape: tuple[int, ...]
  clipped: bool = True

  @property
  def elements(self) -> int:
    """Of the parameter."""
    return math.prod(self.shape)

  @property
  def label(self) -> str:
    """For a table."""
    clip = "" if self.clipped else " not clipped"
    return f"sgd_agc {'x'.join(map(str, self.shape)) or 'scalar'}{clip}"


OpShape = ConvShape | ResidualShape | UpdateShape


def op_shapes(variant: str, num_classes: int = 1000) -> collections.Counter[OpShape]:
  """The calls in one training step of a network, and how many there are of each."""
  return collections.Counter([*_forward_shapes(variant), *_update_shapes(variant, num_classes)])


def _forward_shapes(variant: str) -> Iterator[OpShape]:
  size = get_variant(variant)
  pixels, channels = PIXELS, 3
  stem = (*size.stem_channels, size.stage_channels[0] // 2)
  for i, (out_channels, stride) in enumerate(zip(stem, (2, 1, 1, 2), strict=True)):
    yield ConvShape(
      pixels=pixels,
      in_channels=channels,
      out_channels=out_channels,
      kernel_pixels=3,
      stride=stride,
      activates_output=i < len(stem) - 1,
      differentiates_input=i > 0,
    )
    pixels, channels = pixels // stride, out_channels
  for block in size.blocks():
    width, outputs = block.bottleneck_channels, block.out_channels
    entry = dict(pixels=pixels, in_channels=channels, kernel_pixels=1, activates_input=True)
    grouped = dict(
      in_channels=width,
      out_channels=width,
      kernel_pixels=3,
      groups=block.groups,
      activates_output=True,
    )
    if block.has_projection:
      yield ConvShape(**entry, out_channels=outputs, pool=block.stride > 1)
    yield ConvShape(**entry, out_channels=width, activates_output=True)
    yield ConvShape(pixels=pixels, stride=block.stride, **grouped)
    pixels, channels = pixels // block.stride, outputs
    yield ConvShape(pixels=pixels, **grouped)
    yield ConvShape(pixels=pixels, in_channels=width, out_channels=outputs, kernel_pixels=1)
    yield ResidualShape(pixels=pixels, channels=outputs, squeeze_channels=block.squeeze_channels)
  yield ConvShape(
    pixels=pixels,
    in_channels=channels,
    out_channels=size.head_channels,
    kernel_pixels=1,
    activates_output=True,
  )


def _update_shapes(variant: str, num_classes: int) -> Iterator[UpdateShape]:
  shapes = parameter_shapes(NFNet(variant, num_classes))
  for path, leaf in jax.tree.leaves_with_path(shapes):
    names = [key.key for key in path]
    yield UpdateShape(shape=leaf.shape, clipped=names != ["classifier", "weight"])


def named_shapes() -> dict[OpShape, dict[str, int]]:
  """All shapes of the published networks, each with the networks and how often they have it."""
  shapes: dict[OpShape, dict[str, int]] = {}
  for variant in NAMED_VARIANTS:
    for shape, times in op_shapes(variant).items():
      shapes.setdefault(shape, {})[variant] = times
  return shapes
