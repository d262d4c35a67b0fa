import numpy as np
import pytest

from nfnet.images.resizing import resize_and_center_crop
from tests.nfnet.images import bicubic

RESIZES = ["squash", "shorter_side"]


def photograph(height, width, seed=0):
  """A picture with details of all sizes, and edges steep enough to overshoot 0 and 255."""
  rng = np.random.default_rng(seed)
  rows, columns = np.mgrid[:height, :width]
  waves = np.stack([np.sin(rows / 7), np.sin(columns / 9), np.sin((rows + columns) / 11)], axis=-1)
  blocks = (rows // 13 + columns // 17)[..., None] % 2
  return np.clip(
    127.5 + 90 * waves + 80 * (blocks - 0.5) + rng.normal(0, 20, (height, width, 3)), 0, 255
  ).astype(np.uint8)


def differences(one, other):
  return np.abs(one.astype(np.int32) - other.astype(np.int32))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
  ("shape", "pixels", "margin"),
  [
    pytest.param((100, 150), 32, 4, id="3:2"),
    pytest.param((150, 100), 32, 4, id="2:3"),
    pytest.param((40, 200), 24, 8, id="panorama"),
    pytest.param((20, 31), 32, 4, id="enlarged"),
    pytest.param((90, 60), 32, 5, id="an odd margin"),
    pytest.param((60, 90), 32, 0, id="no margin"),
    pytest.param((80, 80), 32, 6, id="a square"),
  ],
)
def test_pixels_are_those_of_bicubic_resampling_written_out(shape, pixels, margin, resize):
  image = photograph(*shape)
  found = resize_and_center_crop(image, pixels, margin, resize)
  difference = min(
    (differences(found, one) for one in bicubic.evaluation_images(image, pixels, margin, resize)),
    key=np.mean,
  )
  # Pillow's weights are fixed-point numbers, so that a value near a half may be rounded otherwise.
  assert difference.max() <= 1
  assert np.mean(difference > 0) < 0.01


@pytest.mark.parametrize("shape", [(100, 150), (150, 100), (40, 200)])
def test_the_two_ways_show_different_pixels_of_a_picture_that_is_not_square(shape):
  image = photograph(*shape)
  squashed, cropped = (resize_and_center_crop(image, 32, 4, resize) for resize in RESIZES)
  assert differences(squashed, cropped).mean() > 20


def test_the_two_ways_agree_on_a_square():
  image = photograph(96, 96)
  squashed, cropped = (resize_and_center_crop(image, 32, 4, resize) for resize in RESIZES)
  assert differences(squashed, cropped).max() <= 1


@pytest.mark.parametrize(("resize", "seen"), [("squash", 0.89), ("shorter_side", 0.59)])
def test_how_much_of_the_width_of_a_3_to_2_picture_is_seen(resize, seen):
  """Columns are numbered by their brightness."""
  image = np.broadcast_to(np.linspace(0, 255, 384)[None, :, None], (256, 384, 3)).astype(np.uint8)
  row = resize_and_center_crop(image, 256, 32, resize)[0, :, 0].astype(float)
  assert (row[-1] - row[0]) / 255 == pytest.approx(seen, abs=0.01)


@pytest.mark.parametrize("resize", RESIZES)
def test_evaluation_crop_of_the_right_size_is_the_image(resize):
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  np.testing.assert_array_equal(resize_and_center_crop(image, 64, 0, resize), image)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("resize_margin", [0, 32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 2), (100_000, 1)])
def test_evaluation_crop_takes_images_of_any_size(shape, resize_margin, resize):
  image = np.full((*shape, 3), 77, np.uint8)
  found = resize_and_center_crop(image, 64, resize_margin, resize)
  np.testing.assert_array_equal(found, np.full((64, 64, 3), 77, np.uint8))
