"""Parameters and multiply-adds of the network, counted as the papers count them.

What papers A and B call FLOPs are multiply-adds of one forward pass at the test resolution
(paper B, table 1). Counted are convolutions and fully connected layers; biases, activations,
pooling and the standardization of the weights are not.
"""

import collections
import dataclasses
import math

import jax

from nfnet.model import NFNet, parameter_shapes
from nfnet.variants import Bottleneck, get_variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One row of the table.

  Attributes:
    name: "stem", "stage 1" to "stage 4" (squeeze-excite included), "final conv", "classifier".
    blocks: residual blocks in it.
    output_pixels: side of its output; 1 for vectors.
    output_channels: of its output.
    parameters: scalars.
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
  """What one network costs at one resolution.

  Attributes:
    variant: name.
    bottleneck: see `Variant.blocks`.
    num_classes: width of the classifier.
    pixels: side of the image.
    parts: in the order of computation.
  """

  variant: str
  bottleneck: Bottleneck
  num_classes: int
  pixels: int
  parts: tuple[Part, ...]

  @property
  def parameters(self) -> int:
    """Scalars over all parts."""
    return sum(part.parameters for part in self.parts)

  @property
  def macs(self) -> int:
    """Multiply-adds of a forward pass for one image."""
    return sum(part.macs for part in self.parts)

  @property
  def training_flops(self) -> int:
    """Of one training step for one image, without rematerialization.

    A multiply-add is 2 FLOP, and the backward pass has two products of the forward pass's size
    (gradients of inputs and of weights): 2 * (1 + 2) = 6 a multiply-add. The published core-hours
    of paper A mean 29-41 % of a TPU v4's peak by this count.
    """
    return 6 * self.macs


def count(variant: str, *, num_classes: int, pixels: int, bottleneck: Bottleneck = "paper") -> Cost:
  """Counts from the shapes of the parameters and the sides of the activations.

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
  """Side after a stride of 2 with SAME padding."""
  return -(-pixels // 2)
