import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
