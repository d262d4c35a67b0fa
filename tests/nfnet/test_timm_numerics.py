"""Networks with timm's numerics give the logits of timm's network, written out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.inference import load_classifier
from nfnet.model import NFNet, apply, parameter_shapes
from nfnet.weights.haiku_and_timm_names import parameter_names
from nfnet.weights.network_matching import parameter_at
from nfnet.weights.timm import save_timm, to_timm
from tests.nfnet import timm_network
from tests.nfnet.golden import values
from tests.train import small_network

NUM_CLASSES = 7
TIMM_ERROR_MAX = 8e-6
"""Of the largest logit: what float32 loses on the way. The largest error seen is 3e-6."""

pytestmark = pytest.mark.usefixtures("small_networks")


def draw_parameters(variant):
  """Returns parameters of the sizes that trained ones have."""
  parameters = {}
  shapes = parameter_shapes(NFNet(variant, NUM_CLASSES))
  for name in parameter_names(variant):
    folder = parameters
    for key in name.path[:-1]:
      folder = folder.setdefault(key, {})
    key = f"{name.haiku_module}/{name.haiku_leaf}"
    folder[name.path[-1]] = values.value(key, parameter_at(shapes, name.path).shape)
  return parameters


def relative_error(actual, expected):
  return np.abs(actual - expected).max() / np.abs(expected).max()


def run(variant, parameters, images, **arguments):
  model = NFNet(variant, NUM_CLASSES, block_execution="unrolled", **arguments)
  # The program runs once, so that compiling is what takes time.
  options = {"xla_backend_optimization_level": 0}
  function = jax.jit(functools.partial(apply, model), compiler_options=options)
  return np.asarray(function(parameters, jnp.asarray(images)))


@pytest.mark.parametrize(
  ("variant", "pixels", "activation", "released_error_min"),
  [
    (small_network.TINY.name, 32, "gelu", 1e-3),
    (small_network.TINY.name, 32, "silu", 1e-3),
    # Seen: 0.024 and 0.010.
    pytest.param("F0", 64, "gelu", 5e-3, marks=pytest.mark.slow),
    pytest.param("F1", 64, "gelu", 5e-3, marks=pytest.mark.slow),
  ],
)
def test_logits_are_timms(variant, pixels, activation, released_error_min):
  parameters = draw_parameters(variant)
  images = values.images(2, pixels)
  expected = timm_network.logits(to_timm(parameters, variant), images, activation)
  errors = {
    numerics: relative_error(
      run(variant, parameters, images, activation=activation, numerics=numerics), expected
    )
    for numerics in ("timm", "released")
  }
  assert errors["timm"] < TIMM_ERROR_MAX
  assert errors["released"] > released_error_min


def test_a_file_that_timm_trained_is_classified_with_timms_numerics_on_request(tmp_path):
  variant, images = small_network.TINY.name, values.images(2, 32)
  parameters = draw_parameters(variant)
  path = str(tmp_path / "trained_in_timm.safetensors")
  save_timm(path, parameters, variant)
  expected = timm_network.logits(to_timm(parameters, variant), images)
  # The published weights of this layout are DeepMind's, and the file does not say which it holds.
  for numerics, is_timms in ((None, False), ("released", False), ("timm", True)):
    actual = np.asarray(load_classifier(path, variant=variant, numerics=numerics).logits(images))
    assert (relative_error(actual, expected) < TIMM_ERROR_MAX) == is_timms
