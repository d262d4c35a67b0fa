import math

import pytest

from nfnet.variants import VARIANTS, get_variant


@pytest.mark.parametrize(("letter", "width"), [("F{}", 256), ("F{}+", 384)])
@pytest.mark.parametrize("n", range(8))
def test_depths_and_widths(letter, width, n):
  variant = get_variant(letter.format(n))
  assert variant.stage_depths == (n + 1, 2 * (n + 1), 6 * (n + 1), 3 * (n + 1))
  assert variant.stage_channels[:2] == (width, 2 * width)
  assert variant.num_blocks == 12 * (n + 1) == len(variant.blocks())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bottleneck", ["paper", "released"])
def test_blocks_chain_and_groups_divide(name, bottleneck):
  variant = get_variant(name)
  blocks = variant.blocks(bottleneck=bottleneck)
  channels = variant.stage_channels[0] // 2
  for block in blocks:
    assert block.in_channels == channels
    assert block.bottleneck_channels % block.groups == 0
    assert block.has_projection == (block.index_in_stage == 0)
    assert block.stride == (2 if block.stage > 0 and block.index_in_stage == 0 else 1)
    channels = block.out_channels


@pytest.mark.parametrize("name", VARIANTS)
def test_bottlenecks_differ_in_stage_0_of_f_plus_alone(name):
  variant = get_variant(name)
  for paper, released in zip(variant.blocks(), variant.blocks(bottleneck="released"), strict=True):
    if name.endswith("+") and paper.stage == 0:
      assert (paper.bottleneck_channels, paper.groups) == (192, 1)
      assert (released.bottleneck_channels, released.groups) == (128, 1)
    else:
      assert paper == released


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_betas_follow_the_expected_variance(alpha):
  blocks = get_variant("F2").blocks(alpha=alpha)
  per_stage = [[b.beta for b in blocks if b.stage == stage] for stage in range(4)]
  accumulated = 1.0
  for betas in per_stage:
    # The transition block sees what the previous stage accumulated; all others count from 1.
    assert betas[0] == pytest.approx(1 / math.sqrt(accumulated))
    for i, beta in enumerate(betas[1:], start=1):
      assert beta == pytest.approx(1 / math.sqrt(1 + i * alpha**2))
    accumulated = 1 + len(betas) * alpha**2


def test_stochastic_depth_grows_from_0_by_one_share_a_block():
  shares = [block.stochastic_depth_share for block in get_variant("F1").blocks()]
  assert shares == pytest.approx([i / 24 for i in range(24)])


@pytest.mark.parametrize(
  ("wrong", "nearest"), [("F8", "F"), ("f3+", "F3+"), ("nfnet-F5", "F5"), ("", "")]
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(wrong, nearest):
  with pytest.raises(
    ValueError, match=rf"unknown variant '{wrong}'.*nearest: {nearest}".replace("+", r"\+")
  ):
    get_variant(wrong)


def test_an_unknown_bottleneck_is_an_error():
  # The error is beartype's, or a ValueError where types are not checked at run time.
  with pytest.raises(Exception, match="bottleneck"):
    get_variant("F0+").blocks(bottleneck="rounded")
