import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nfnet.images.normalization import normalize


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_normalize_matches_the_definition_in_float64(array):
  images = np.random.default_rng(2).integers(0, 256, (2, 5, 4, 3), np.uint8)
  normalized = normalize(array(images))
  assert normalized.dtype == np.float32
  mean = np.array([0.485, 0.456, 0.406]).reshape(1, 1, 1, 3) * 255
  stddev = np.array([0.229, 0.224, 0.225]).reshape(1, 1, 1, 3) * 255
  # Rounding: of the constant, the difference (below 255 of 2.2 ulp at zero) and the quotient.
  np.testing.assert_allclose(normalized, (images - mean) / stddev, rtol=3e-7, atol=1e-6)


def test_channels_are_last():
  for shape in ((3, 4, 5), (2, 3, 4, 5), (4, 3), ()):
    with pytest.raises(ValueError, match="with the channels last"):
      normalize(np.zeros(shape, np.uint8))


PICTURE = np.linspace(0, 255, 12, dtype=np.float32).reshape(2, 2, 3)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    ([[1, 2, 3]], "images are a value of type list; must be an array .*: nfnet.preprocess takes"),
    (Image.new("RGB", (2, 2)), "images are a value of type Image"),
    (normalize(PICTURE), r"images have values from -2\.\d+ to 2\.64; .*not normalized yet"),
    (jnp.full((2, 2, 3), -500.0), "images have values from -500 to -500; must be from 0 to 255"),
    (np.full((2, 2, 3), 65535, np.uint16), "to 65535; must be .* scale those of more bits"),
    (PICTURE.astype(np.int32) + 1, "from 1 to 256; must be from 0 to 255"),
    (np.where(PICTURE > 99, np.nan, PICTURE), "images have values that are NaN or infinite"),
    (PICTURE > 99, "images are bool; must be uint8, or floats from 0 to 255"),
    (PICTURE.astype(object), "images are object; must be"),
    (PICTURE.astype(np.complex64), "images are complex64; must be"),
  ],
)
def test_what_is_no_picture_from_0_to_255_is_refused_in_one_line(images, message):
  with pytest.raises(ValueError, match=message) as raised:
    normalize(images)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["int32", "uint16", "float16", "bfloat16", "float64"])
def test_numbers_of_any_kind_from_0_to_255_are_normalized(dtype):
  picture = np.rint(PICTURE).astype(jnp.dtype(dtype))
  expected = normalize(np.rint(PICTURE).astype(np.uint8))
  # Of these dtypes, bfloat16 alone does not have all of these numbers; 8 bits are 0.4 %.
  np.testing.assert_allclose(normalize(picture), expected, atol=0.02)
  with pytest.warns(UserWarning, match="no value above 1"):
    normalize((picture > 99).astype(picture.dtype))


def test_a_traced_program_may_close_over_its_picture():
  picture = jnp.asarray(PICTURE)
  program = jax.jit(lambda: normalize(picture))
  np.testing.assert_allclose(program(), normalize(PICTURE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_pictures_from_0_to_1_are_warned_of(array):
  picture = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 2, 3)
  with pytest.warns(UserWarning, match=r"from 0 to 1; give 255 \* images"):
    normalize(array(picture))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    normalize(array(255 * picture))
    normalize(array(np.zeros((2, 2, 3), np.uint8)))
    jax.jit(normalize)(picture)
