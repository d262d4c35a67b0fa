import dataclasses
import functools

import jax
import pytest

from nfnet import variants
from tests.train.small_network import TINY
from tests.train.step.training import (
  EXPERIMENT,
  assert_same_training,
  make_batch,
  run,
  training,
  with_model,
  with_shards,
)
from train.step.parameter_groups import parameter_role
from train.step.sharding.batch import put_batch

# The filters' channels fill tiles.
WIDE = dataclasses.replace(
  TINY, name="wide", stage_channels=(256, 256, 256, 256), stage_depths=(1, 0, 0, 0)
)
DEEPER = dataclasses.replace(
  TINY, name="deeper", stage_channels=(256, 512, 512, 512), stage_depths=(1, 1, 0, 0)
)
PLAIN = with_model(EXPERIMENT, variant=WIDE.name)
STANDARDIZED = with_model(PLAIN, kernels="pallas")


@pytest.fixture(scope="module", autouse=True)
def wide():
  with pytest.MonkeyPatch.context() as patch:
    for variant in (WIDE, DEEPER):
      patch.setitem(variants.VARIANTS, variant.name, variant)
    yield


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


@pytest.mark.parametrize("variant", [WIDE, pytest.param(DEEPER, marks=pytest.mark.slow)])
def test_filters_that_are_standardized_before_they_travel_train_as_well(variant):
  """On two replicas of two shards; up to the order of float32 sums."""
  plain, standardized = (
    with_model(experiment, variant=variant.name) for experiment in (PLAIN, STANDARDIZED)
  )
  assert_same_training(run(with_shards(standardized, 2), devices=4), run(plain))


@pytest.mark.parametrize(
  ("gradient_dtype", "has_kernels"), [("bfloat16", True), ("float32", False)]
)
def test_kernels_compute_gradients_of_weights_that_are_rounded_as_they_travel(
  gradient_dtype, has_kernels
):
  rounded = with_model(STANDARDIZED, compute_dtype="bfloat16")
  trained = training(with_shards(rounded, 2, gradient_dtype=gradient_dtype), devices=4)
  state, batch = jax.eval_shape(trained.start), put_batch(make_batch(), trained.mesh)
  program = str(jax.make_jaxpr(trained.step)(state, batch))
  # One layer's parts of 64 outputs do not fill the lanes.
  fully_connected = 1 + 2 * WIDE.num_blocks - 1
  assert program.count("name=fully_connected_gradient") == (fully_connected if has_kernels else 0)


@pytest.mark.slow
def test_gradients_of_rounded_weights_train_as_well():
  rounded = with_shards(with_model(STANDARDIZED, compute_dtype="bfloat16"), 2)
  travels_rounded = with_shards(rounded, 2, gradient_dtype="bfloat16")
  (_, ours), (_, expected) = (run(one, devices=4) for one in (travels_rounded, rounded))
  assert ours[0]["loss"] == expected[0]["loss"]
  assert ours[0]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=2**-8)
  for one, other in zip(ours, expected, strict=True):
    assert one["loss"] == pytest.approx(other["loss"], rel=2**-8)
