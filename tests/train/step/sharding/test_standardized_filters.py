import dataclasses

import jax
import pytest

from nfnet import variants
from tests.train.small_network import TINY
from tests.train.step.training import (
  EXPERIMENT,
  assert_same_training,
  run,
  training,
  with_model,
  with_shards,
)
from train.step.parameter_groups import parameter_roles
from train.step.sharding.mesh import make_mesh

# Two shards have whole squares of some filters and not of others.
WIDE = dataclasses.replace(TINY, name="wide", stage_channels=(256, 512, 512, 512))
PLAIN = with_model(EXPERIMENT, variant=WIDE.name)
STANDARDIZED = with_model(PLAIN, kernels="pallas")


@pytest.fixture(scope="module", autouse=True)
def wide():
  variants.VARIANTS[WIDE.name] = WIDE
  yield
  del variants.VARIANTS[WIDE.name]


def weights(model, mesh):
  roles = parameter_roles(model, mesh)["blocks"]["1"]
  return {
    name: role["weight"].sharded_axis for name, role in roles.items() if name.startswith("conv")
  }


def test_a_shard_has_whole_squares():
  mesh = make_mesh(jax.devices()[:4], parameter_shards=4)
  model = training(with_shards(STANDARDIZED, 2), devices=2).model
  # 512 outputs are 4 squares wide, 256 are 2.
  assert weights(model, mesh) == dict(conv0=None, conv1=None, conv1b=None, conv2=3, conv_shortcut=3)
  plain = training(with_shards(PLAIN, 2), devices=2).model
  assert set(weights(plain, mesh).values()) == {3}


def test_filters_that_are_standardized_before_they_travel_train_as_well():
  """On two replicas of two shards; up to the order of float32 sums."""
  assert_same_training(run(with_shards(STANDARDIZED, 2), devices=4), run(PLAIN))
