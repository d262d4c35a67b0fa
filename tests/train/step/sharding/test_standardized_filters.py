import dataclasses
import functools

import pytest

from nfnet import variants
from tests.train.small_network import TINY
from tests.train.step.training import (
  EXPERIMENT,
  assert_same_training,
  run,
  with_model,
  with_shards,
)
from train.step.parameter_groups import parameter_role

# The filters' channels fill tiles.
WIDE = dataclasses.replace(TINY, name="wide", stage_channels=(256, 512, 512, 512))
PLAIN = with_model(EXPERIMENT, variant=WIDE.name)
STANDARDIZED = with_model(PLAIN, kernels="pallas")


@pytest.fixture(scope="module", autouse=True)
def wide():
  variants.VARIANTS[WIDE.name] = WIDE
  yield
  del variants.VARIANTS[WIDE.name]


@pytest.mark.parametrize(
  ("shape", "shards", "is_divided"),
  [
    ((1, 1, 1536, 768), 8, True),  # 96 rows each
    ((3, 3, 192, 192), 4, True),  # 48
    ((3, 3, 192, 192), 8, False),  # 24
    ((1, 1, 256, 128), 16, False),  # 8
  ],
)
def test_the_rows_of_a_shard_fill_tiles(shape, shards, is_divided):
  role = functools.partial(parameter_role, "blocks/1/conv0/weight", shape, shards)
  assert role(has_kernels=True).sharded_axis == (3 if is_divided else None)
  assert role(has_kernels=False).sharded_axis == 3


def test_filters_that_are_standardized_before_they_travel_train_as_well():
  """On two replicas of two shards; up to the order of float32 sums."""
  assert_same_training(run(with_shards(STANDARDIZED, 2), devices=4), run(PLAIN))
