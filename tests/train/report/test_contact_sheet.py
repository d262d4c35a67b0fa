import numpy as np
import pytest

from train.report.contact_sheet import draw_contact_sheet


@pytest.mark.parametrize(("pixels", "scale"), [(8, 16), (100, 2), (128, 1), (224, 1)])
def test_every_pixel_is_on_the_sheet(pixels, scale):
  images = np.random.default_rng(0).integers(0, 256, (5, pixels, pixels, 3), np.uint8)
  sheet = np.asarray(draw_contact_sheet(images, ["a"] * 5, columns=3))
  side = pixels * scale
  for index, image in enumerate(images):
    top, left = 6 + index // 3 * (side + 36), 6 + index % 3 * (side + 6)
    shown = sheet[top : top + side : scale, left : left + side : scale]
    np.testing.assert_array_equal(shown, image)
    below = sheet[top + side : top + side + 15, left : left + side]
    assert (below < 128).any()
  # Nothing is below the fifth.
  assert (sheet[6 + side + 36 :, 6 + 2 * (side + 6) :] == 255).all()


def test_long_captions_end_with_their_image():
  images = np.zeros((2, 128, 128, 3), np.uint8)
  long = np.asarray(draw_contact_sheet(images, ["W" * 500, "x\x1b\nsecond\nthird"], columns=2))
  assert (long[128 + 6 :, 128 + 6 : 128 + 11] == 255).all()
  assert long.shape == (6 + 128 + 30 + 6, 6 + 2 * 134, 3)
