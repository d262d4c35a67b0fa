import pytest

from nfnet.cost import count
from profiling.op_shapes import (
  NAMED_VARIANTS,
  ConvShape,
  ResidualShape,
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
  # The classifier is not one of the ops.
  assert cost.parts[-1].name == "classifier"
  assert macs == cost.macs - cost.parts[-1].macs
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
    kernel_pixels=3,
    groups=6,
    activates_output=True,
  )
  # Stage 3 has 12 blocks with two of them each, of which one has a stride.
  assert shapes[grouped] == 23
  assert grouped.label == "conv 3x3 14px 768->768 groups 6 gelu out"
  strided = ConvShape(
    pixels=28,
    in_channels=768,
    out_channels=768,
    kernel_pixels=3,
    stride=2,
    groups=6,
    activates_output=True,
  )
  assert (shapes[strided], strided.out_pixels) == (1, 14)
  pooled = ConvShape(
    pixels=56, in_channels=256, out_channels=512, kernel_pixels=1, pool=True, activates_input=True
  )
  assert (shapes[pooled], pooled.out_pixels) == (1, 28)
  assert shapes[ResidualShape(pixels=14, channels=1536, squeeze_channels=768)] == 12
  assert shapes[UpdateShape(shape=(3072, 1000), clipped=False)] == 1
  assert UpdateShape(shape=(3072, 1000)) not in shapes
  # The stem: no activation after its last convolution.
  labels = [shape.label for shape in shapes if shape.label.startswith("conv 3x3")]
  assert labels[:4] == [
    "conv 3x3 224px 3->16 stride 2 gelu out",
    "conv 3x3 112px 16->32 gelu out",
    "conv 3x3 112px 32->64 gelu out",
    "conv 3x3 112px 64->128 stride 2",
  ]
  # The images need no gradient.
  (first,) = [shape for shape in shapes if isinstance(shape, ConvShape) and shape.pixels == 224]
  assert first.backward_macs == first.macs
  assert grouped.backward_macs == 2 * grouped.macs


def test_a_shape_is_named_once_for_all_networks_that_have_it():
  shapes = named_shapes()
  assert len({shape.label for shape in shapes}) == len(shapes)
  assert {
    variant: times
    for variant, times in shapes[
      ResidualShape(pixels=14, channels=1536, squeeze_channels=768)
    ].items()
    if variant in ("F0", "F7", "F7+")
  } == {"F0": 6, "F7": 48}
