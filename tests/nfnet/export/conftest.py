import jax
import numpy as np
import pytest

from nfnet.inference import Classifier
from nfnet.model import NFNet, parameter_shapes
from tests.train.small_network import TINY


@pytest.fixture(scope="module")
def classifier(small_networks):
  """Returns a network in which every parameter counts."""
  rng = np.random.default_rng(0)
  model = NFNet(TINY.name, 5, numerics="timm")
  parameters = jax.tree.map(
    lambda shape: np.asarray(0.5 * rng.standard_normal(shape.shape), np.float32),
    parameter_shapes(model),
  )
  return Classifier(
    model=model,
    parameters=parameters,
    pixels=16,
    resize="squash",
    resize_margin=3,
    class_names=None,
    is_multi_label=True,
  )


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
