import functools
import importlib.util
import sys

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.data import crops
from train.data.augmentation import image_generator

needs_the_resizer = pytest.mark.skipif(
  crops.cykooz_resizer is None, reason="cykooz-resizer is not installed"
)
SIZES = st.integers(1, 3) | st.integers(1, 300)


def image_of(height, width):
  """Returns an image that holds row and column of each pixel, so that a crop shows its origin."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack([rows, columns, rows], axis=-1).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(SIZES, SIZES, st.floats(0.01, 1), st.floats(1, 3), st.integers(0, 2**32))
def test_boxes_lie_inside_the_image_within_the_bounds(
  height, width, area_min, aspect_ratio_max, seed
):
  generator = np.random.default_rng(seed)
  left, top, right, bottom = crops.random_box(height, width, generator, area_min, aspect_ratio_max)
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height
  box_width, box_height = right - left, bottom - top
  # Sides are rounded to whole pixels, half a pixel each.
  assert (box_width - 0.5) / (box_height + 0.5) <= aspect_ratio_max
  assert (box_height - 0.5) / (box_width + 0.5) <= aspect_ratio_max


def test_area_and_aspect_ratio_have_the_stated_distributions():
  boxes = np.array(
    [
      crops.random_box(1000, 1000, image_generator(0, 0, index), 0.08, 4 / 3)
      for index in range(4000)
    ]
  )
  widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  log_ratios = np.log(widths / heights)
  areas = widths * heights / 1e6
  assert areas.min() >= 0.079
  # Rectangles that do not fit are drawn again: area a > 3/4 fits with probability
  # -log(a) / log(4/3), so the mean is 0.478; that of 4000 draws has a standard error of 0.004.
  assert areas.mean() == pytest.approx(0.478, abs=0.016)
  assert abs(log_ratios).max() <= np.log(4 / 3) + 0.01
  assert log_ratios.mean() == pytest.approx(0, abs=0.015)
  # Positions: the space left of the box is as large as the space right of it, on average.
  assert (boxes[:, 0] - (1000 - boxes[:, 2])).mean() == pytest.approx(0, abs=20)


def test_a_long_image_falls_back_to_the_largest_centered_crop():
  box = crops.random_box(10, 1000, np.random.default_rng(0), 0.9, 4 / 3)
  assert box == (493, 0, 506, 10)


def test_the_whole_image_at_its_own_size_is_unchanged():
  image = image_of(32, 32)
  cropped = crops.random_resized_crop(
    image, np.random.default_rng(0), 32, area_min=1.0, aspect_ratio_max=1.0
  )
  np.testing.assert_array_equal(cropped, image)


def photograph():
  """Returns four windows, 300 x 400, of a photograph with detail."""
  image = sklearn.datasets.load_sample_image("china.jpg")
  return [image[top : top + 300, left : left + 400] for top in (0, 100) for left in (0, 200)]


@pytest.mark.parametrize("pixels", [100, 224, 300, 500])
def test_resizing_is_that_of_pillow_but_for_rounding(pixels):
  for image in photograph():
    expected = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC)
    found = crops.resize(image, pixels)
    difference = np.abs(found.astype(np.int16) - np.asarray(expected, np.int16))
    # Both round to whole numbers after the first direction, and they begin with different ones.
    # Where that cuts off an overshoot of the filter, single values differ by more.
    assert difference.mean() < 0.4
    assert (difference > 2).mean() < 1e-3


@functools.cache
def crops_without_the_resizer():
  """Returns the module as it is where cykooz-resizer is not installed."""
  specification = importlib.util.spec_from_file_location(
    "crops_without_the_resizer", crops.__file__
  )
  module = importlib.util.module_from_spec(specification)
  with pytest.MonkeyPatch.context() as patch:
    # This makes `import` fail.
    patch.setitem(sys.modules, "cykooz_resizer", None)
    specification.loader.exec_module(module)
  assert module.cykooz_resizer is None
  return module


@needs_the_resizer
@pytest.mark.parametrize("pixels", [100, 224, 300, 500])
def test_without_the_resizer_images_are_almost_the_same(pixels):
  """The figures are those of the docstring of `resize_by_pillow`."""
  differences = []
  for image in photograph():
    for box in ((0, 0, 400, 300), (11, 7, 160, 290), (200, 100, 390, 230)):
      left, top, right, bottom = box
      cropped = image[top:bottom, left:right]
      found = crops_without_the_resizer().resize(cropped, pixels).astype(np.int16)
      differences.append(np.abs(found - crops.resize(cropped, pixels)))
  assert np.max(differences) <= 2
  assert 0 < np.mean(np.array(differences) > 0) < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (50, 60)])
def test_without_the_resizer_images_of_any_size_give_the_crop_that_was_asked_for(shape):
  generators = (np.random.default_rng(0) for _ in range(2))
  here, there = (
    module.random_resized_crop(
      image_of(*shape), next(generators), 16, area_min=0.08, aspect_ratio_max=4 / 3
    )
    for module in (crops, crops_without_the_resizer())
  )
  assert (there.shape, there.dtype) == ((16, 16, 3), np.uint8)
  assert np.abs(here.astype(np.int16) - there).max() <= 2
  assert not there.flags.writeable


@needs_the_resizer
def test_resizing_is_the_same_on_processors_without_vector_instructions():
  cykooz_resizer = crops.cykooz_resizer
  image = photograph()[0]
  found = crops.resize(image, 224)
  height, width, _ = image.shape
  source = cykooz_resizer.ImageData(width, height, cykooz_resizer.PixelType.U8x3, image.tobytes())
  resized = cykooz_resizer.ImageData(224, 224, cykooz_resizer.PixelType.U8x3)
  resizer = cykooz_resizer.Resizer()
  resizer.cpu_extensions = cykooz_resizer.CpuExtensions.none
  resizer.resize(source, resized, crops.BICUBIC)
  assert found.tobytes() == resized.get_buffer()


def test_a_crop_that_shrinks_is_antialiased():
  # A checkerboard has only frequencies that 50 pixels cannot show: what is left is its mean.
  image = np.zeros((200, 200, 3), np.uint8)
  image[::2, ::2] = image[1::2, 1::2] = 200
  assert abs(crops.resize(image, 50)[2:-2, 2:-2].astype(int) - 100).max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (50, 60)])
def test_images_of_any_size_give_the_crop_that_was_asked_for(shape):
  cropped = crops.random_resized_crop(
    image_of(*shape), np.random.default_rng(0), 16, area_min=0.08, aspect_ratio_max=4 / 3
  )
  assert cropped.shape == (16, 16, 3)
  assert cropped.dtype == np.uint8
