"""Lists the variants: F0 to F7, F0+ to F7+, and small ones for a CPU that follow the same rules.

Paper B (https://arxiv.org/abs/2102.06171), table 1 and section 4. The F+ variants and F7 are from
the code released with it and from paper A (https://arxiv.org/abs/2310.16764).
"""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Literal, get_args

from nfnet.errors import check_choice, quoted

Bottleneck = Literal["paper", "released"]

PIXELS_MAX = 4096
"""Largest side of a network's images: several times that of any published one, 3 GB in a batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockShape:
  """Describes one residual block.

  Attributes:
    stage: number of the stage, 0 to 3.
    index_in_stage: number of the block in its stage; 0 is the transition block.
    in_channels: channels of the block's input.
    out_channels: channels of the block's output.
    bottleneck_channels: channels of the 3x3 convolutions.
    groups: groups of the 3x3 convolutions.
    stride: stride of the first 3x3 convolution.
    squeeze_channels: hidden width of squeeze-excite.
    beta: 1 / the expected standard deviation of the input.
    stochastic_depth_share: the block's drop rate as a share of `NFNet`'s stochastic_depth_rate.
  """

  stage: int
  index_in_stage: int
  in_channels: int
  out_channels: int
  bottleneck_channels: int
  groups: int
  stride: int
  squeeze_channels: int
  beta: float
  stochastic_depth_share: float

  @property
  def has_projection(self) -> bool:
    """Returns whether the shortcut is a convolution."""
    return self.stride > 1 or self.in_channels != self.out_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """Describes one size of the network.

  Attributes:
    name: name, for example "F3+".
    stem_channels: output channels of the first three stem convolutions; the fourth has half of
      stage 0's.
    stage_channels: output channels of each stage.
    stage_depths: number of blocks of each stage.
    group_channels: target width of a group of the 3x3 convolutions.
    dropout_rate: dropout rate before the classifier (paper B, table 1).
    train_pixels: side of a training image in paper B.
    test_pixels: side of a test image in paper B.
    randaugment_magnitude: magnitude of the 4 RandAugment layers in paper B.
  """

  name: str
  stem_channels: tuple[int, int, int] = (16, 32, 64)
  stage_channels: tuple[int, int, int, int]
  stage_depths: tuple[int, int, int, int]
  group_channels: int = 128
  dropout_rate: float
  train_pixels: int
  test_pixels: int
  randaugment_magnitude: int

  @property
  def num_blocks(self) -> int:
    """Returns the number of blocks of all stages."""
    return sum(self.stage_depths)

  @property
  def head_channels(self) -> int:
    """Returns the number of channels of the last convolution, the classifier's input."""
    return 2 * self.stage_channels[3]

  def blocks(self, *, alpha: float = 0.2, bottleneck: Bottleneck = "paper") -> list[BlockShape]:
    """Returns all blocks in order.

    Args:
      alpha: weight of the residual branch; each block adds its square to the expected variance.
      bottleneck: "paper" is half of the output channels; "released" rounds that down to a multiple
        of `group_channels`. They differ only in stage 0 of the F+ variants (192 and 128 channels).
    """
    return list(self._blocks(alpha, bottleneck))

  def _blocks(self, alpha: float, bottleneck: Bottleneck) -> Iterator[BlockShape]:
    check_choice("bottleneck", bottleneck, get_args(Bottleneck))
    in_channels = self.stage_channels[0] // 2
    expected_variance = 1.0
    index = 0
    for stage, (channels, depth) in enumerate(
      zip(self.stage_channels, self.stage_depths, strict=True)
    ):
      groups = max(1, channels // 2 // self.group_channels)
      rounded = groups * self.group_channels
      for index_in_stage in range(depth):
        yield BlockShape(
          stage=stage,
          index_in_stage=index_in_stage,
          in_channels=in_channels,
          out_channels=channels,
          bottleneck_channels=rounded if bottleneck == "released" else channels // 2,
          groups=groups,
          stride=2 if stage > 0 and index_in_stage == 0 else 1,
          squeeze_channels=channels // 2,
          beta=expected_variance**-0.5,
          stochastic_depth_share=index / self.num_blocks,
        )
        in_channels = channels
        index += 1
        # The transition block's shortcut is a convolution of the normalized input, so the variance
        # restarts from 1, to which the block's own branch then adds.
        if index_in_stage == 0:
          expected_variance = 1.0
        expected_variance += alpha**2


_DROPOUT_RATES = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)
_TRAIN_PIXELS = (192, 224, 256, 320, 384, 416, 448, 480)
_TEST_PIXELS = (256, 320, 352, 416, 512, 544, 576, 608)
_RANDAUGMENT_MAGNITUDES = (5, 10, 10, 15, 15, 15, 15, 15)


def _family() -> Iterator[Variant]:
  for suffix, stage_channels in (("", (256, 512, 1536, 1536)), ("+", (384, 768, 2048, 2048))):
    for n in range(8):
      yield Variant(
        name=f"F{n}{suffix}",
        stage_channels=stage_channels,
        stage_depths=tuple((n + 1) * depth for depth in (1, 2, 6, 3)),
        dropout_rate=_DROPOUT_RATES[n],
        train_pixels=_TRAIN_PIXELS[n],
        test_pixels=_TEST_PIXELS[n],
        randaugment_magnitude=_RANDAUGMENT_MAGNITUDES[n],
      )
  # For CPUs and 32 px images: M (micro) has the depths of F and a quarter of its channels, N (nano)
  # has an eighth of its channels, and P (pico) is N with half of the blocks.
  for letter, divisor, stem_channels, depths in (
    ("M", 4, (8, 16, 32), (1, 2, 6, 3)),
    ("N", 8, (8, 8, 16), (1, 2, 6, 3)),
    ("P", 8, (8, 8, 16), (1, 1, 3, 1)),
  ):
    for n in range(4):
      yield Variant(
        name=f"{letter}{n}",
        stem_channels=stem_channels,
        stage_channels=tuple(c // divisor for c in (256, 512, 1536, 1536)),
        stage_depths=tuple((n + 1) * depth for depth in depths),
        group_channels=128 // divisor,
        dropout_rate=_DROPOUT_RATES[n],
        train_pixels=32,
        test_pixels=32,
        randaugment_magnitude=_RANDAUGMENT_MAGNITUDES[n],
      )


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _family()}
"""All variants by name."""


def get_variant(name: str) -> Variant:
  """Returns the variant called `name`.

  Raises:
    ValueError: there is no such variant; the message names the nearest.
  """
  if not isinstance(name, str) or name not in VARIANTS:
    text = name if isinstance(name, str) else ""
    near = difflib.get_close_matches(text[:20].upper(), VARIANTS, n=1, cutoff=0.0)[0]
    raise ValueError(
      f"unknown variant {quoted(name)}; nearest: {near}; choose one of {', '.join(VARIANTS)}"
    )
  return VARIANTS[name]
