import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from nfnet.images.normalization import normalize
from nfnet.images.preprocessing import preprocess
from nfnet.images.resizing import resize_and_center_crop

PIXELS = 20


@pytest.fixture(scope="module")
def array():
  return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def path(array, tmp_path_factory):
  path = tmp_path_factory.mktemp("pictures") / "a.png"
  Image.fromarray(array).save(path)
  return path


def test_a_picture_of_any_kind_is_the_same_image(array, path):
  expected = normalize(resize_and_center_crop(array, PIXELS, 32, "squash"))
  with Image.open(path) as unread:
    pictures = [path, str(path), path.read_bytes(), unread, array, jnp.asarray(array)]
    for picture in pictures:
      images = preprocess(picture, PIXELS)
      assert (images.shape, images.dtype) == ((1, PIXELS, PIXELS, 3), np.float32)
      np.testing.assert_array_equal(images[0], expected)
  np.testing.assert_array_equal(preprocess([path, array], PIXELS), np.stack([expected] * 2))
  np.testing.assert_array_equal(preprocess(np.stack([array] * 3), PIXELS), [expected] * 3)
  np.testing.assert_array_equal(preprocess(iter([array]), PIXELS), [expected])


def test_resizing_can_be_chosen(array):
  expected = normalize(resize_and_center_crop(array, PIXELS, 3, "shorter_side"))
  images = preprocess(array, PIXELS, resize="shorter_side", resize_margin=3)
  np.testing.assert_array_equal(images, [expected])


def test_pillows_modes_are_converted_as_those_of_files():
  deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
  image = Image.fromarray(deep)
  encoded = io.BytesIO()
  image.save(encoded, "PNG")
  np.testing.assert_array_equal(preprocess(image, 8), preprocess(encoded.getvalue(), 8))
  for mode in ("L", "RGBA", "CMYK", "P", "1"):
    assert preprocess(image.convert("L").convert(mode), 8).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
  ("picture", "message"),
  [
    (np.zeros((8, 8, 3)), r"a picture is float64 \[8, 8, 3\]; must be uint8"),
    (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]; must be uint8 \[height, width, 3\]"),
    (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]; must be"),
    (np.zeros((0, 8, 3), np.uint8), "not empty"),
    (np.zeros((0, 8, 8, 3), np.uint8), "there are no pictures"),
    ([], "there are no pictures"),
  ],
)
def test_arrays_of_another_kind_end_in_one_line(picture, message):
  with pytest.raises(ValueError, match=message):
    preprocess(picture, PIXELS)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"pixels": 0}, "pixels=0: must be a whole number from 1 to 4096"),
    ({"pixels": 10**6}, "pixels=1000000"),
    ({"pixels": 8, "resize_margin": -1}, "resize_margin=-1: must be a whole number from 0"),
  ],
)
def test_numbers_are_bounded(array, arguments, message):
  with pytest.raises(ValueError, match=message):
    preprocess(array, **arguments)


def test_files_that_are_no_images_are_named(path, tmp_path):
  (tmp_path / "cut.png").write_bytes(path.read_bytes()[:500])
  for bad, message in (
    (tmp_path / "cut.png", r"image '.*cut.png' cannot be decoded"),
    (tmp_path / "missing.png", r"image '.*missing.png' cannot be read: No such file"),
    ("gs://bucket/a.png", "has to be a path of this machine"),
    (b"text", "an image of 4 bytes cannot be decoded"),
    (b"t", "an image of 1 byte cannot be decoded"),
    ("a" * 5000, r"^image=a{80}\.\.\. is a path of 5,000 characters; must be at most 4,095 bytes$"),
  ):
    with pytest.raises(UserError, match=message):
      preprocess([path, bad], PIXELS)
  with (
    Image.open(tmp_path / "cut.png") as unread,
    pytest.raises(UserError, match="an image of Pillow cannot be decoded"),
  ):
    preprocess(unread, PIXELS)


def test_bytes_may_be_of_any_kind():
  stream = io.BytesIO()
  Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(stream, "PNG")
  expected = preprocess(stream.getvalue(), 8)
  for kind in (bytearray, memoryview):
    np.testing.assert_array_equal(preprocess(kind(stream.getvalue()), 8), expected)
    np.testing.assert_array_equal(preprocess([kind(stream.getvalue())], 8), expected)


def test_pictures_without_known_values_are_refused():
  with pytest.raises(ValueError, match="of the mode F, whose values have no known bounds"):
    preprocess(Image.fromarray(np.ones((4, 4), np.float32)), 4)
  with pytest.raises(ValueError, match="of 0 x 5 pixels; must not be empty"):
    preprocess(Image.new("RGB", (0, 5)), 4)
  with pytest.raises(ValueError, match=r"a picture is traced: call nfnet.preprocess outside of"):
    jax.eval_shape(lambda picture: preprocess(picture, 4), np.zeros((4, 4, 3), np.uint8))
  with pytest.raises(ValueError, match="pixels=True: must be a whole number"):
    preprocess(np.zeros((4, 4, 3), np.uint8), True)
