import dataclasses

import pytest

from nfnet.cost import count
from profiling.compile.op_shapes import (
  NAMED_VARIANTS,
  ConvShape,
  FullyConnectedShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
  named_shapes,
  op_shapes,
)


def test_the_published_networks():
  assert list(NAMED_VARIANTS) == [f"F{i}{plus}" for plus in ("", "+") for i in range(8)]


@pytest.mark.parametrize("variant", ["F0", "F3", "F7+"])
def test_the_shapes_are_all_of_a_networks_arithmetic_and_parameters(variant):
  cost = count(variant, num_classes=1000, pixels=224)
  shapes = op_shapes(variant)
  macs = sum(
    shape.macs * times for shape, times in shapes.items() if not isinstance(shape, UpdateShape)
  )
  assert macs == cost.macs
  elements = sum(
    shape.elements * times for shape, times in shapes.items() if isinstance(shape, UpdateShape)
  )
  assert elements == cost.parameters


def test_what_the_calls_of_a_network_are():
  shapes = op_shapes("F1")
  grouped = ConvShape(
    pixels=14,
    in_channels=768,
    out_channels=768,
    filter_pixels=3,
    groups=6,
    activates_input=True,
  )
  # Stage 3 has 12 blocks with two of them each, of which one has a stride.
  assert shapes[grouped] == 23
  assert grouped.label == "conv 3x3 14px 768->768 groups 6 gelu in"
  strided = ConvShape(
    pixels=28,
    in_channels=768,
    out_channels=768,
    filter_pixels=3,
    stride=2,
    groups=6,
    activates_input=True,
  )
  assert (shapes[strided], strided.out_pixels) == (1, 14)
  pooled = ConvShape(
    pixels=56, in_channels=256, out_channels=512, filter_pixels=1, pool=True, activates_input=True
  )
  assert (shapes[pooled], pooled.out_pixels) == (1, 28)
  last = ConvShape(
    pixels=14, in_channels=768, out_channels=1536, filter_pixels=1, activates_input=True
  )
  squeeze_excite = SqueezeExciteShape(convolution=last, squeeze_channels=768)
  assert (shapes[last], shapes[squeeze_excite]) == (12, 12)
  assert squeeze_excite.label == "se_residual after 768->1536 14px squeeze 768"
  classifier = FullyConnectedShape(inputs=3072, outputs=1000)
  assert shapes[classifier] == 1
  assert classifier.label == "fully_connected 3072->1000"
  assert classifier.backward_macs == 2 * classifier.macs
  assert shapes[UpdateShape(shapes=((3072, 1000),), clipped=False)] == 1
  assert UpdateShape(shapes=((3072, 1000),)) not in shapes
  (small,) = [shape for shape in shapes if isinstance(shape, UpdateShape) and len(shape.shapes) > 1]
  assert small.label == f"sgd_agc {len(small.shapes)} small parameters"
  # Skip gains, one a block.
  assert small.shapes.count(()) == 24
  # What the shortcut has of the branch: its first convolution's input.
  entries = [shape for shape in shapes if isinstance(shape, ConvShape) and shape.returns_input]
  assert sum(shapes[shape] for shape in entries) == 24
  # The first block's input is the stem's result.
  assert sum(shapes[shape] for shape in entries if shape.sums_input) == 23
  (stem,) = [shape for shape in shapes if isinstance(shape, StemShape)]
  assert stem.label == "stem 224px 3->16->32->64->128"
  first = 112**2 * 9 * 3 * 16
  assert stem.macs == first + 112**2 * 9 * (16 * 32 + 32 * 64) + 56**2 * 9 * 64 * 128
  # The images need no gradient.
  assert stem.backward_macs == 2 * stem.macs - first
  assert grouped.backward_macs == 2 * grouped.macs


@pytest.mark.parametrize("variant", ["F0", "F7+"])
def test_squeeze_excite_is_at_the_end_of_every_block(variant):
  shapes = op_shapes(variant)
  ends = {one: times for one, times in shapes.items() if isinstance(one, SqueezeExciteShape)}
  entries = (one for one in shapes if isinstance(one, ConvShape) and one.returns_input)
  assert sum(ends.values()) == sum(shapes[entry] for entry in entries)
  for end, times in ends.items():
    # The convolution is not part of what the row is about, and has one of its own.
    assert end.macs == 2 * end.convolution.out_channels * end.squeeze_channels
    assert end.backward_macs == 2 * end.macs
    # In the first stage, the shortcut's is of the same shape.
    assert shapes[end.convolution] == times + (end.convolution.pixels == 56)


def test_the_problems_have_the_arithmetic_of_their_shapes():
  for shape in named_shapes():
    if isinstance(shape, ConvShape | SqueezeExciteShape):
      raw, standardized, *of_sum = shape.problems(images=20)
      assert dataclasses.replace(standardized, standardized=False) == raw != standardized
      assert of_sum in ([], [dataclasses.replace(standardized, sums_input=True)])
      assert raw.ends_branch == isinstance(shape, SqueezeExciteShape)
      macs = (shape.convolution if raw.ends_branch else shape).macs
      # A batch is filled up to tiles.
      assert raw.images == 32
      pixels = raw.height * raw.width
      outputs = raw.group_inputs * raw.out_channels
      assert pixels * len(raw.taps) * outputs == macs
    elif isinstance(shape, StemShape):
      problems = shape.problems(images=16)
      last = problems[-1]
      assert (last.height, last.width, last.out_channels) == (56, 56, shape.channels[-1])
      # Of the bands' squares, a sixth to a half is no zeros.
      squares = sum(
        g.height * g.width * len(g.taps) * g.in_channels * g.out_channels for g in problems
      )
      assert 2 * shape.macs < squares < 6 * shape.macs


def test_a_shape_is_named_once_for_all_networks_that_have_it():
  shapes = named_shapes()
  assert len({shape.label for shape in shapes}) == len(shapes)
  assert {
    variant: times
    for variant, times in shapes[
      ConvShape(
        pixels=14,
        in_channels=768,
        out_channels=1536,
        filter_pixels=1,
        activates_input=True,
      )
    ].items()
    if variant in ("F0", "F7", "F7+")
  } == {"F0": 6, "F7": 48}
