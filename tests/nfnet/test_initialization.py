import inspect

import jax
import numpy as np
import pytest

from nfnet.initialization import INITIALIZERS, initial_parameters
from nfnet.model import NFNet, parameter_shapes


@pytest.fixture(scope="module")
def parameters():
  return initial_parameters(NFNet("N0", 10), seed=0)


def test_has_every_parameter_in_its_shape_as_float32(parameters):
  shapes = parameter_shapes(NFNet("N0", 10))
  assert jax.tree.structure(parameters) == jax.tree.structure(shapes)
  for array, shape in zip(jax.tree.leaves(parameters), jax.tree.leaves(shapes), strict=True):
    assert array.shape == shape.shape
    assert array.dtype == np.float32


def test_filters_have_variance_one_over_fan_in(parameters):
  weight = parameters["blocks"]["5"]["conv1"]["weight"]
  fan_in = np.prod(weight.shape[:3])
  # The standard error of a deviation is 1 / sqrt(2 n).
  assert weight.std() * np.sqrt(fan_in) == pytest.approx(1, abs=4 / np.sqrt(2 * weight.size))


def test_squeeze_excite_is_cut_off_at_two_deviations(parameters):
  weight = parameters["blocks"]["5"]["squeeze_excite"]["squeeze"]["weight"]
  scaled = weight * np.sqrt(weight.shape[0])
  assert np.abs(scaled).max() <= 2
  # The standard deviation of a normal distribution that is cut off at 2 deviations.
  assert scaled.std() == pytest.approx(0.8796, abs=0.02)


def test_classifier_and_constants(parameters):
  weight = parameters["classifier"]["weight"]
  assert weight.std() == pytest.approx(0.01, rel=0.05)
  assert not parameters["classifier"]["bias"].any()
  block = parameters["blocks"]["0"]
  assert block["skip_gain"] == 0
  assert (block["conv0"]["gain"] == 1).all()
  assert not block["conv0"]["bias"].any()


def test_depends_on_seed_and_name_alone(parameters):
  again = initial_parameters(NFNet("N0", 100, block_execution="unrolled"), seed=0)
  other = initial_parameters(NFNet("N0", 10), seed=1)
  first = parameters["blocks"]["1"]["conv0"]["weight"]
  np.testing.assert_array_equal(first, again["blocks"]["1"]["conv0"]["weight"])
  assert not np.array_equal(first, other["blocks"]["1"]["conv0"]["weight"])
  assert not np.array_equal(
    parameters["blocks"]["4"]["conv0"]["weight"], parameters["blocks"]["5"]["conv0"]["weight"]
  )


def test_every_initializer_is_used(parameters):
  import re

  names = [
    "/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(parameters)
  ]
  firsts = {
    next(pattern for pattern, _ in INITIALIZERS if re.fullmatch(pattern, name)) for name in names
  }
  assert firsts == {pattern for pattern, _ in INITIALIZERS}


@pytest.mark.parametrize("seed", [-1, 1.5, "0", jax.random.key(0)])
def test_a_seed_is_a_whole_number(seed):
  with pytest.raises(ValueError, match=r"seed=.*: must be a whole number of at least 0"):
    # Without the check of types that tests add.
    inspect.unwrap(initial_parameters)(NFNet("P0", 3), seed)
