import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.images.network_input import check_network_input
from nfnet.images.normalization import normalize

IMAGES = np.linspace(-2, 2.5, 2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    ([[1.0]], "images are a value of type list; must be an array of floats"),
    (IMAGES[0], r"float32 \[4, 5, 3\]; .*: give images\[None\] for one image"),
    (IMAGES[None], r"float32 \[1, 2, 4, 5, 3\]; must be \[images, height, width, 3\]"),
    (IMAGES.transpose(0, 3, 1, 2), r"\[2, 3, 4, 5\]; .*: images.transpose\(0, 2, 3, 1\) has"),
    (IMAGES[..., :1], r"\[2, 4, 5, 1\]; must be \[images, height, width, 3\]: nfnet.preprocess"),
    (IMAGES[:0], r"\[0, 4, 5, 3\]; must not be empty"),
    (IMAGES.astype(np.uint8), r"images are uint8 .*; must be normalized floats: .*normalize"),
    (jnp.asarray(IMAGES, jnp.int32), "images are int32"),
    (np.linspace(0, 255, 12).reshape(1, 2, 2, 3), "values from 0 to 255, so they are not normal"),
    (jnp.full((1, 2, 2, 3), -128.0), "values from -128 to -128, so they are not normalized"),
    (np.where(IMAGES < 2, IMAGES, np.nan), "images have values that are NaN or infinite: nfnet."),
    (jnp.where(IMAGES < 2, IMAGES, -jnp.inf), "images have values that are NaN or infinite"),
  ],
)
def test_mistakes_end_in_one_line_with_the_cure(images, message):
  with pytest.raises(ValueError, match=message) as raised:
    check_network_input(images)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_a_network_takes_passes(dtype):
  check_network_input(jnp.asarray(IMAGES, dtype))
  check_network_input(jnp.zeros((1, 1, 1, 3), dtype))
  check_network_input(normalize(np.arange(255, dtype=np.uint8).reshape(1, 17, 5, 3)))


def test_pictures_from_0_to_1_are_warned_of():
  with pytest.warns(
    UserWarning, match=r"from 0 to 1, which looks like .*nfnet.normalize\(255 \* images"
  ):
    check_network_input(np.linspace(0, 1, 12).reshape(1, 2, 2, 3))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    check_network_input(np.ones((1, 2, 2, 3)))


def test_a_warning_names_the_line_of_the_caller(tmp_path):
  # In a process of its own, since between the calls of this one are those of the type checker.
  script = tmp_path / "script.py"
  script.write_text(
    "import numpy, nfnet\n"
    "images = numpy.linspace(0, 1, 12).reshape(1, 2, 2, 3)\n"
    "nfnet.normalize(images)\n"
    "nfnet.apply(nfnet.NFNet('F0', num_classes=10), {}, images)\n"
  )
  ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
  assert re.findall(r"script.py:(\d): UserWarning", ended.stderr) == ["3", "4"]


def test_a_traced_program_may_close_over_its_images():
  images = jnp.asarray(IMAGES)

  @jax.jit
  def program(x):
    check_network_input(images)
    return x

  program(1.0)


@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap, lambda f: jax.vmap(jax.grad(f))])
def test_shapes_are_checked_and_values_ignored_in_traced_programs(transformation):
  @transformation
  def program(image):
    check_network_input(image[None] if image.ndim == 3 else image)
    return jnp.sum(image)

  program(1000 * jnp.asarray(IMAGES))
  with pytest.raises(ValueError, match=r"must be \[images, height, width, 3\]"):
    program(jnp.asarray(IMAGES[..., :1]))
