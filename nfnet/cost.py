"""Counts parameters and multiply-adds of the network as the papers count them.

What papers A and B call FLOPs are multiply-adds of one forward pass at the test resolution
(paper B, table 1). They count convolutions and fully connected layers; biases, activations, pooling
and weight standardization are left out.
"""

import collections
import dataclasses
import math

import jax

from nfnet.model import NFNet, parameter_shapes
from nfnet.variants import Bottleneck, get_variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """Holds the counts of one part of the network.

  Attributes:
    name: "stem", "stage 1" to "stage 4" (squeeze-excite included), "final conv", "classifier".
    blocks: number of residual blocks.
    output_pixels: side of the part's output; 1 for vectors.
    output_channels: number of channels of the part's output.
    parameters: number of scalar parameters.
    macs: multiply-adds for one image.
  """

  name: str
  blocks: int
  output_pixels: int
  output_channels: int
  parameters: int
  macs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Holds what one network costs at one resolution.

  Attributes:
    variant: name of the variant.
    bottleneck: see `Variant.blocks`.
    num_classes: width of the classifier.
    pixels: side of the image.
    parts: parts of the network in the order of computation.
  """

  variant: str
  bottleneck: Bottleneck
  num_classes: int
  pixels: int
  parts: tuple[Part, ...]

  @property
  def parameters(self) -> int:
    """Returns the number of scalar parameters of all parts."""
    return sum(part.parameters for part in self.parts)

  @property
  def macs(self) -> int:
    """Returns the multiply-adds of a forward pass for one image."""
    return sum(part.macs for part in self.parts)

  @property
  def training_flops(self) -> int:
    """Returns the FLOPs of one training step for one image, without rematerialization.

    A multiply-add is 2 FLOPs, and for each product of the forward pass the backward pass has two of
    its size (the gradients of input and weight): 2 * (1 + 2) = 6 FLOPs per multiply-add. By this
    count the published core-hours of paper A correspond to 29-41 % of a TPU v4's peak.
    """
    return 6 * self.macs


def count(variant: str, *, num_classes: int, pixels: int, bottleneck: Bottleneck = "paper") -> Cost:
  """Counts parameters and multiply-adds from the shapes of parameters and activations.

  Args:
    variant: name from `nfnet.variants.VARIANTS`.
    num_classes: width of the classifier.
    pixels: side of the image.
    bottleneck: see `Variant.blocks`.

  Raises:
    ValueError: there is no such variant.
  """
  size = get_variant(variant)
  blocks = size.blocks(bottleneck=bottleneck)
  half = _halved(pixels)
  block_sides = [_halved(half)]
  for block in blocks:
    block_sides.append(_halved(block_sides[-1]) if block.stride == 2 else block_sides[-1])

  def part_and_output_side(path: tuple[str, ...]) -> tuple[str, int]:
    match path:
      case ("stem", "conv3", _):
        return "stem", block_sides[0]
      case ("stem", _, _):
        return "stem", half
      case ("blocks", i, "conv0", _):
        return _stage_name(blocks[int(i)].stage), block_sides[int(i)]
      case ("blocks", i, "squeeze_excite", _, _):
        return _stage_name(blocks[int(i)].stage), 1
      case ("blocks", i, *_):
        return _stage_name(blocks[int(i)].stage), block_sides[int(i) + 1]
      case ("final_conv", _):
        return "final conv", block_sides[-1]
      case _:
        return "classifier", 1

  parameters, macs = collections.Counter(), collections.Counter()
  model = NFNet(variant, num_classes, bottleneck=bottleneck)
  for keys, shape in jax.tree.leaves_with_path(parameter_shapes(model)):
    path = tuple(key.key for key in keys)
    part, side = part_and_output_side(path)
    parameters[part] += math.prod(shape.shape)
    if path[-1] == "weight":
      macs[part] += math.prod(shape.shape) * side**2

  rows = [("stem", 0, block_sides[0], size.stage_channels[0] // 2)]
  last_block = -1
  for stage, depth in enumerate(size.stage_depths):
    last_block += depth
    rows.append(
      (_stage_name(stage), depth, block_sides[last_block + 1], size.stage_channels[stage])
    )
  rows.append(("final conv", 0, block_sides[-1], size.head_channels))
  rows.append(("classifier", 0, 1, num_classes))
  return Cost(
    variant=variant,
    bottleneck=bottleneck,
    num_classes=num_classes,
    pixels=pixels,
    parts=tuple(
      Part(
        name=name,
        blocks=depth,
        output_pixels=side,
        output_channels=channels,
        parameters=parameters[name],
        macs=macs[name],
      )
      for name, depth, side, channels in rows
    ),
  )


def _stage_name(stage: int) -> str:
  return f"stage {stage + 1}"


def _halved(pixels: int) -> int:
  """Returns the side after a stride of 2 with SAME padding."""
  return -(-pixels // 2)
