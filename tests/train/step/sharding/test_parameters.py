"""The same training on any arrangement of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.sgd_agc.reference import PARAMETER_NORM_FLOOR
from nfnet.block_arrangement import arrange_blocks
from nfnet.errors import UserError
from nfnet.model import parameter_shapes
from tests.train.small_network import SMALL
from tests.train.step.test_train_step import EXPERIMENT, run
from train.config.experiment import Parallelism
from train.run.checkpoints.manager import Checkpoints
from train.step.parameter_groups import parameter_name
from train.step.schedule import learning_rate_schedule
from train.step.sharding.mesh import DATA_AXES, make_mesh
from train.step.sharding.parameters import gather, parameter_specs, sum_gradients
from train.step.train_step import abstract_state, make_model, make_optimizer

STEPS = 20


def sharded(shards, **model):
  return dataclasses.replace(
    EXPERIMENT,
    parallelism=Parallelism(parameter_shards=shards),
    model=dataclasses.replace(EXPERIMENT.model, **model),
  )


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def one_device(small_networks):
  return run(EXPERIMENT, steps=STEPS)


@pytest.fixture(scope="module")
def four_shards(small_networks):
  return run(sharded(4), devices=8, steps=STEPS)


def assert_same_training(ours, theirs):
  """Within 1e-5: losses, each tree as a whole, and each parameter of at least AGC's floor of 1e-3.

  Momentum, as sums of gradients in which terms cancel, is compared as a whole only: the gain of one
  convolution differs by 2.3e-5.
  """
  (state, metrics), (expected, expected_metrics) = ours, theirs
  for one, other in zip(metrics, expected_metrics, strict=True):
    assert jax.tree.map(float, one) == pytest.approx(jax.tree.map(float, other), rel=1e-5)
  momentum, expected_momentum = state.optimizer.momentum, expected.optimizer.momentum
  assert norm(jax.tree.map(np.subtract, momentum, expected_momentum)) < 1e-5 * norm(
    expected_momentum
  )
  for tree, expected_tree in (
    (state.parameters, expected.parameters),
    (state.ema, expected.ema),
  ):
    difference = jax.tree.map(np.subtract, tree, expected_tree)
    assert norm(difference) < 1e-5 * norm(expected_tree)
    for one, other in zip(jax.tree.leaves(difference), jax.tree.leaves(expected_tree), strict=True):
      assert np.abs(one).max() < 1e-5 * max(np.abs(other).max(), PARAMETER_NORM_FLOOR)


def norm(tree):
  return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


def test_twenty_steps_on_two_replicas_of_four_shards_are_those_of_one_device(
  one_device, four_shards
):
  """Up to the order of float32 sums; stochastic depth and dropout are on."""
  assert_same_training(four_shards, one_device)
  # Training moved the parameters by far more than the tolerance.
  first, last = (one_device[1][i]["loss"] for i in (0, -1))
  assert last < 0.9 * first


# Three steps of eight replicas are in test_step.py.
@pytest.mark.slow
def test_twenty_steps_of_eight_replicas_are_those_of_one_device(one_device):
  assert_same_training(run(sharded(1), devices=8, steps=STEPS), one_device)


def test_two_runs_of_one_layout_are_equal_to_the_bit(four_shards):
  again = run(sharded(4), devices=8, steps=STEPS)
  jax.tree.map(np.testing.assert_array_equal, again, four_shards)


@pytest.mark.slow
def test_in_bfloat16_shards_lose_one_rounding_of_the_weights():
  exact, rounded = (
    run(sharded(shards, compute_dtype="bfloat16"), devices=8)[1] for shards in (1, 8)
  )
  for ours, theirs in zip(rounded, exact, strict=True):
    # Relative 2^-9 for each of some ten layers.
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2**-9 * np.sqrt(10))
  assert rounded[0]["loss"] != exact[0]["loss"]


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_gradients_that_travel_in_bfloat16_train_as_well(shards, one_device):
  experiment = sharded(shards)
  experiment = dataclasses.replace(
    experiment,
    parallelism=dataclasses.replace(experiment.parallelism, gradient_dtype="bfloat16"),
  )
  _, metrics = run(experiment, devices=8, steps=STEPS)
  # The first step's loss is of the same parameters, and its gradients are rounded eight times.
  assert metrics[0]["loss"] == pytest.approx(one_device[1][0]["loss"], rel=1e-5)
  norms = [one[0]["gradient_norm"] for one in (metrics, one_device[1])]
  assert norms[0] == pytest.approx(norms[1], rel=2**-8)
  assert norms[0] != pytest.approx(norms[1], rel=1e-5)
  # Each of the following steps adds as much again.
  for ours, theirs in zip(metrics, one_device[1], strict=True):
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2**-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_summed_in_their_dtype(dtype):
  mesh = make_mesh(parameter_shards=4)
  specs = {"weight": P(None, "shard"), "bias": P()}
  parts = np.random.default_rng(0).standard_normal((8, 4, 16)).astype(np.float32)

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(DATA_AXES), out_specs=specs)
  def total(parts):
    return sum_gradients({"weight": parts[0], "bias": parts[0, 0]}, specs, jnp.dtype(dtype))

  result = jax.jit(total)(parts)
  expected = parts.sum(0, dtype=np.float64)
  # Each part and each of the sums is rounded to half of the last place.
  tolerance = 8 * float(jnp.finfo(dtype).eps) / 2 * np.abs(parts).sum(0).max()
  for name, sums in (("weight", expected), ("bias", expected[0])):
    assert result[name].dtype == dtype
    np.testing.assert_allclose(np.asarray(result[name], np.float64), sums, rtol=0, atol=tolerance)


@pytest.fixture(params=["scan", "unrolled"])
def model(request):
  return make_model(sharded(4, variant=SMALL.name, block_execution=request.param))


def test_filters_are_cut_along_their_outputs(model):
  mesh = make_mesh(parameter_shards=4)
  shapes = arrange_blocks(parameter_shapes(model), model.block_keys)
  specs = jax.tree_util.tree_leaves_with_path(
    parameter_specs(shapes, mesh), is_leaf=lambda x: isinstance(x, P)
  )
  cut, whole = 0, 0
  for (path, spec), leaf in zip(specs, jax.tree.leaves(shapes), strict=True):
    name, stacked = parameter_name(path), ":" in parameter_name(path)
    if name == "classifier/weight":
      assert spec == P("shard")
    elif name.endswith("weight"):
      assert leaf.ndim - stacked in (2, 4)
      assert spec == P(*[None] * (leaf.ndim - 1), "shard")
    else:
      # Gains, biases and skip gains are units as a whole.
      assert spec == P()
    elements = np.prod(leaf.shape)
    cut, whole = cut + elements * (spec != P()), whole + elements * (spec == P())
  assert whole < 0.05 * cut


def test_what_does_not_divide_is_whole():
  mesh = make_mesh(jax.devices()[:3], parameter_shards=3)
  specs = parameter_specs({"stem": {"weight": jnp.zeros((3, 3, 3, 16))}}, mesh)
  assert specs["stem"]["weight"] == P()
  specs = parameter_specs({"stem": {"weight": jnp.zeros((3, 3, 3, 18))}}, mesh)
  assert specs["stem"]["weight"] == P(None, None, None, "shard")


def test_a_device_holds_its_part_only():
  experiment = sharded(8)
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples=1000)
  mesh = make_mesh(parameter_shards=8)
  state = abstract_state(experiment, model, make_optimizer(experiment, rate), mesh)
  for tree in (state.parameters, state.optimizer.momentum, state.ema):
    held = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
    total = sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
    assert total / 8 < held < total / 6


def test_parts_travel_in_the_compute_dtype():
  mesh = make_mesh(parameter_shards=8)
  weight = jax.random.normal(jax.random.key(0), (4, 16))
  specs = {"weight": P(None, "shard"), "bias": P()}

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=P("shard"))
  def gathered(parameters):
    whole = gather(parameters, specs, jnp.bfloat16)
    return jax.tree.map(lambda x: jax.lax.pmax(x, "replica")[None], whole)

  result = jax.jit(gathered)({"weight": weight, "bias": weight[0]})
  # Each of the eight has all of it.
  rounded = weight.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(result["weight"], np.broadcast_to(rounded, (8, 4, 16)))
  np.testing.assert_array_equal(result["bias"], np.broadcast_to(weight[0], (8, 16)))


def test_devices_that_do_not_divide_are_an_error():
  with pytest.raises(UserError, match=r"parameter_shards=3 does not divide the 8 devices"):
    make_mesh(parameter_shards=3)


def test_a_checkpoint_is_restored_on_another_mesh_to_the_bit(tmp_path):
  experiment = sharded(4)
  model = make_model(experiment)
  optimizer = make_optimizer(experiment, learning_rate_schedule(experiment, 1000))

  def state_on(devices, shards):
    mesh = make_mesh(jax.devices()[:devices], parameter_shards=shards)
    return abstract_state(experiment, model, optimizer, mesh)

  def draw(described):
    generator = np.random.default_rng(1)
    return jax.tree.map(
      lambda x: jax.device_put(generator.standard_normal(x.shape).astype(x.dtype), x.sharding),
      described,
    )

  saved = draw(state_on(8, 4))
  with Checkpoints(str(tmp_path), keep=1) as checkpoints:
    checkpoints.save(
      1,
      parameters=saved.parameters,
      ema=saved.ema,
      optimizer=saved.optimizer._asdict(),
      data_state={},
      metadata={},
    )
    checkpoints.wait()
    for devices, shards in ((8, 8), (1, 1), (4, 2)):
      wanted = state_on(devices, shards)
      restored = checkpoints.restore(
        parameters=wanted.parameters, ema=wanted.ema, optimizer=wanted.optimizer._asdict()
      )
      for ours, theirs, described in (
        (restored.parameters, saved.parameters, wanted.parameters),
        (restored.ema, saved.ema, wanted.ema),
        (restored.optimizer["momentum"], saved.optimizer.momentum, wanted.optimizer.momentum),
      ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert jax.tree.map(lambda x: x.sharding, ours) == jax.tree.map(
          lambda x: x.sharding, described
        )
