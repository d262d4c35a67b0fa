"""Makes parameters of whole networks for tests of the file formats."""

import jax
import numpy as np

from nfnet.model import NFNet, parameter_shapes

NUM_CLASSES = 7


def distinct_parameters(name, **arguments):
  """Returns parameters of which no two are equal, so that none can be taken for another."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda shape: np.asarray(rng.standard_normal(shape.shape), np.float32),
    parameter_shapes(NFNet(name, NUM_CLASSES, **arguments)),
  )


def without_memory(name, num_classes=1000, bottleneck="paper"):
  """Returns parameters of a large variant that take no memory."""
  shapes = parameter_shapes(NFNet(name, num_classes, bottleneck=bottleneck))
  return jax.tree.map(lambda shape: np.broadcast_to(np.float32(0), shape.shape), shapes)


def assert_bit_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)
