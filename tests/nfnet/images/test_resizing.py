import numpy as np
import pytest
from PIL import Image

from nfnet.images.resizing import resize_and_center_crop


@pytest.mark.parametrize("pixels", [32, 48])
@pytest.mark.parametrize("resize_margin", [0, 16, 32])
@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (96, 96)])
def test_evaluation_crop_matches_resize_then_crop(pixels, resize_margin, shape):
  rows, columns = np.mgrid[: shape[0], : shape[1]]
  waves = [np.sin(rows / 7), np.sin(columns / 9), np.sin((rows + columns) / 11)]
  image = (127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)
  scale = (pixels + resize_margin) / min(shape)
  height, width = (round(side * scale) for side in shape)
  resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - pixels) // 2, (height - pixels) // 2
  expected = np.asarray(resized)[top : top + pixels, left : left + pixels]
  found = resize_and_center_crop(image, pixels, resize_margin)
  assert found.shape == (pixels, pixels, 3)
  # The two-step way rounds size and position to whole pixels: a difference of up to a pixel, where
  # the waves change by up to 127 / 7 * 96 / 64 a pixel, 2 / pi of that on average.
  difference = np.abs(found.astype(np.int32) - expected.astype(np.int32))
  assert difference.mean() < 8


def test_evaluation_crop_of_the_right_size_is_the_image():
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  np.testing.assert_array_equal(resize_and_center_crop(image, 64, 0), image)


@pytest.mark.parametrize("resize_margin", [0, 32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_evaluation_crop_takes_images_of_any_size(shape, resize_margin):
  image = np.full((*shape, 3), 77, np.uint8)
  found = resize_and_center_crop(image, 64, resize_margin)
  np.testing.assert_array_equal(found, np.full((64, 64, 3), 77, np.uint8))
