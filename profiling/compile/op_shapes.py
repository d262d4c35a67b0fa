"""Lists every call of an op in the published networks, by shape.

Images have 224 px unless a caller says otherwise; the sides of the activations follow from that.
The depth of a network changes only how often a shape occurs.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator

import jax

from kernels.scaled_ws_conv.problem import Problem, problem_of
from kernels.sgd_agc.problem import is_small
from kernels.stem.problem import problems_of
from nfnet.model import NFNet, parameter_name, parameter_shapes
from nfnet.variants import VARIANTS, get_variant
from train.step.parameter_groups import parameter_role

PIXELS = 224
NAMED_VARIANTS = tuple(
  name for name in VARIANTS if name.startswith("F") and name.rstrip("+")[1:].isdigit()
)
"""F0 to F7 and F0+ to F7+."""
SUMMARIZED_VARIANTS = ("F0", "F7+")
"""The smallest and the largest published network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvShape:
  """One call of scaled_ws_convolution.

  Attributes:
    pixels: side of the input.
    in_channels: channels of the input.
    out_channels: channels of the result.
    filter_pixels: side of the filter.
    stride: stride of the convolution.
    groups: number of groups of channels.
    pool: whether 2x2 average pooling comes first.
    activates_input: whether the input goes through a gelu.
    returns_input: whether the input is returned for other uses.
    sums_input: whether the input is the sum of a residual block, which the kernel may add up.
  """

  pixels: int
  in_channels: int
  out_channels: int
  filter_pixels: int
  stride: int = 1
  groups: int = 1
  pool: bool = False
  activates_input: bool = False
  returns_input: bool = False
  sums_input: bool = False

  @property
  def out_pixels(self) -> int:
    """Side of the result."""
    return self.pixels // (2 if self.pool else self.stride)

  def problems(self, images: int) -> list[Problem]:
    """Returns what the kernels compute for `images`, in bfloat16.

    That is with raw filters, with standardized ones, and with these while adding up the input.
    """
    size = self.filter_pixels
    return [
      problem_of(
        (self.pixels, self.pixels, images, self.in_channels),
        (size, size, self.in_channels // self.groups, self.out_channels),
        stride=self.stride,
        groups=self.groups,
        pool=self.pool,
        returns_input=self.returns_input,
        itemsize=2,
        standardized=standardized,
        sums_input=sums_input,
      )
      for standardized, sums_input in ((False, False), (True, False), (True, True))
      if self.sums_input or not sums_input
    ]

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass for one image."""
    taps = self.filter_pixels**2 * self.in_channels // self.groups
    return self.out_pixels**2 * self.out_channels * taps

  @property
  def backward_macs(self) -> int:
    """Multiply-adds of the gradients of weight and input for one image."""
    return 2 * self.macs

  @property
  def label(self) -> str:
    """Describes the call in a table."""
    parts = [
      f"conv {self.filter_pixels}x{self.filter_pixels}",
      f"{self.pixels}px",
      f"{self.in_channels}->{self.out_channels}",
    ]
    parts += [f"groups {self.groups}"] if self.groups > 1 else []
    parts += ["stride 2"] if self.stride > 1 else []
    parts += ["pooled"] if self.pool else []
    parts += ["gelu in"] if self.activates_input else []
    parts += ["with input"] if self.returns_input else []
    return " ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemShape:
  """One call of stem_convolutions.

  Attributes:
    pixels: side of the images.
    channels: channels of the results of the four convolutions.
  """

  pixels: int
  channels: tuple[int, int, int, int]

  @property
  def out_pixels(self) -> int:
    """Side of the result."""
    return self.pixels // 4

  def problems(self, images: int) -> list[Problem]:
    """Returns what the kernels compute for `images`, in bfloat16."""
    pairs = zip((3, *self.channels), self.channels, strict=False)
    return problems_of(
      (self.pixels, self.pixels, images, 3), [(3, 3, *pair) for pair in pairs], itemsize=2
    )

  @property
  def _macs_by_convolution(self) -> list[int]:
    channels = (3, *self.channels)
    sides = [self.pixels // side for side in (2, 2, 2, 4)]
    return [
      side**2 * 9 * inputs * outputs
      for side, inputs, outputs in zip(sides, channels, self.channels, strict=False)
    ]

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass for one image."""
    return sum(self._macs_by_convolution)

  @property
  def backward_macs(self) -> int:
    """Multiply-adds of all gradients for one image; the images themselves have none."""
    return 2 * self.macs - self._macs_by_convolution[0]

  @property
  def label(self) -> str:
    """Describes the call in a table."""
    return f"stem {self.pixels}px {'->'.join(map(str, (3, *self.channels)))}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeExciteShape:
  """The part of one call of conv_se_residual that is not its convolution.

  Attributes:
    convolution: the convolution.
    squeeze_channels: hidden width of the gate.
  """

  convolution: ConvShape
  squeeze_channels: int

  def problems(self, images: int) -> list[Problem]:
    """Returns what the kernels compute for the convolution: with raw filters and without."""
    conv = self.convolution
    return [
      problem_of(
        (conv.pixels, conv.pixels, images, conv.in_channels),
        (1, 1, conv.in_channels, conv.out_channels),
        stride=1,
        groups=1,
        pool=False,
        ends_branch=True,
        itemsize=2,
        standardized=standardized,
      )
      for standardized in (False, True)
    ]

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass for one image: the gate's two products."""
    return 2 * self.convolution.out_channels * self.squeeze_channels

  @property
  def backward_macs(self) -> int:
    """Multiply-adds of all gradients for one image."""
    return 2 * self.macs

  @property
  def label(self) -> str:
    """Describes the call in a table."""
    conv = self.convolution
    return (
      f"se_residual after {conv.in_channels}->{conv.out_channels} {conv.pixels}px "
      f"squeeze {self.squeeze_channels}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullyConnectedShape:
  """One call of fully_connected_layer: the classifier.

  Attributes:
    inputs: number of features of an image.
    outputs: number of classes.
  """

  inputs: int
  outputs: int

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass for one image."""
    return self.inputs * self.outputs

  @property
  def backward_macs(self) -> int:
    """Multiply-adds of the gradients of weight and input for one image."""
    return 2 * self.macs

  @property
  def label(self) -> str:
    """Describes the call in a table."""
    return f"fully_connected {self.inputs}->{self.outputs}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateShape:
  """One call of sgd_agc_step.

  Attributes:
    shapes: shape of one large parameter, or shapes of all small parameters of a network.
    clipped: whether AGC clips the gradients; those of the classifier's weight are not clipped.
  """

  shapes: tuple[tuple[int, ...], ...]
  clipped: bool = True

  @property
  def elements(self) -> int:
    """Number of scalars in the parameters."""
    return sum(map(math.prod, self.shapes))

  @property
  def label(self) -> str:
    """Describes the call in a table."""
    if len(self.shapes) > 1:
      return f"sgd_agc {len(self.shapes)} small parameters"
    (shape,) = self.shapes
    clip = "" if self.clipped else " not clipped"
    return f"sgd_agc {'x'.join(map(str, shape))}{clip}"


OpShape = ConvShape | StemShape | SqueezeExciteShape | FullyConnectedShape | UpdateShape


def op_shapes(
  variant: str, num_classes: int = 1000, pixels: int = PIXELS
) -> collections.Counter[OpShape]:
  """Counts the calls in one training step of a network.

  A branch's last convolution, which is one call with squeeze-excite, is counted on its own.

  Args:
    variant: name of the network.
    num_classes: width of the classifier.
    pixels: side of the images, a multiple of 32.
  """
  return collections.Counter(
    [*_forward_shapes(variant, num_classes, pixels), *_update_shapes(variant, num_classes)]
  )


def _forward_shapes(variant: str, num_classes: int, pixels: int) -> Iterator[OpShape]:
  size = get_variant(variant)
  channels = size.stage_channels[0] // 2
  yield StemShape(pixels=pixels, channels=(*size.stem_channels, channels))
  pixels //= 4
  for index, block in enumerate(size.blocks()):
    width, outputs = block.bottleneck_channels, block.out_channels
    entry = dict(pixels=pixels, in_channels=channels, filter_pixels=1, activates_input=True)
    grouped = dict(
      in_channels=width,
      out_channels=width,
      filter_pixels=3,
      groups=block.groups,
      activates_input=True,
    )
    if block.has_projection:
      yield ConvShape(**entry, out_channels=outputs, pool=block.stride > 1)
    yield ConvShape(**entry, out_channels=width, returns_input=True, sums_input=index > 0)
    yield ConvShape(pixels=pixels, stride=block.stride, **grouped)
    pixels, channels = pixels // block.stride, outputs
    yield ConvShape(pixels=pixels, **grouped)
    last = ConvShape(
      pixels=pixels,
      in_channels=width,
      out_channels=outputs,
      filter_pixels=1,
      activates_input=True,
    )
    yield last
    yield SqueezeExciteShape(convolution=last, squeeze_channels=block.squeeze_channels)
  yield ConvShape(
    pixels=pixels,
    in_channels=channels,
    out_channels=size.head_channels,
    filter_pixels=1,
  )
  yield FullyConnectedShape(inputs=size.head_channels, outputs=num_classes)


# A network takes a twentieth of a second, and several tables go over all of them.
@functools.cache
def _update_shapes(variant: str, num_classes: int) -> tuple[UpdateShape, ...]:
  shapes = parameter_shapes(NFNet(variant, num_classes))
  large, small = [], []
  for path, leaf in jax.tree.leaves_with_path(shapes):
    if is_small(leaf.shape, stacked=False):
      small.append(leaf.shape)
    else:
      role = parameter_role(parameter_name(path), leaf.shape)
      large.append(UpdateShape(shapes=(leaf.shape,), clipped=role.clipped))
  return (*large, UpdateShape(shapes=tuple(small)))


def named_shapes() -> dict[OpShape, dict[str, int]]:
  """Returns all shapes of the published networks, with how often each network has them.

  The small parameters of a network are one call; only those of F0 and F7+ are included.
  """
  shapes: dict[OpShape, dict[str, int]] = {}
  for variant in NAMED_VARIANTS:
    for shape, times in op_shapes(variant).items():
      is_small = isinstance(shape, UpdateShape) and len(shape.shapes) > 1
      if not is_small or variant in SUMMARIZED_VARIANTS:
        shapes.setdefault(shape, {})[variant] = times
  return shapes
