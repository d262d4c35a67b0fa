"""The same training on any arrangement of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.train.step.training import (
  EXPERIMENT,
  assert_same_training,
  run,
  training,
  with_model,
  with_shards,
)
from train.config.json_conversion import to_json
from train.run.checkpoints.manager import Checkpoints
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_role, parameter_roles
from train.step.sharding.mesh import DATA_AXES, make_mesh
from train.step.sharding.parameters import (
  SMALL_ELEMENTS_MAX,
  gather,
  rounded_for_gradients,
  start_sums,
  sum_gradients,
)
from train.step.state import abstract_state

STEPS = 20

pytestmark = pytest.mark.usefixtures("small_networks")


def on_one_device():
  return run(EXPERIMENT, steps=STEPS)


def on_four_shards():
  return run(with_shards(EXPERIMENT, 4), devices=8, steps=STEPS)


def test_twenty_steps_on_two_replicas_of_four_shards_are_those_of_one_device():
  """Up to the order of float32 sums; stochastic depth and dropout are on."""
  expected = on_one_device()
  assert_same_training(on_four_shards(), expected)
  # Training moved the parameters by far more than the tolerance.
  first, last = (expected[1][i]["loss"] for i in (0, -1))
  assert last < 0.9 * first


# Three steps of eight replicas are in test_train_step.py.
@pytest.mark.slow
def test_twenty_steps_of_eight_replicas_are_those_of_one_device():
  assert_same_training(run(EXPERIMENT, devices=8, steps=STEPS), on_one_device())


def test_two_runs_of_one_layout_are_equal_to_the_bit():
  again = training(with_shards(EXPERIMENT, 4), devices=8).run(STEPS)
  jax.tree.map(np.testing.assert_array_equal, again, on_four_shards())


@pytest.mark.slow
def test_in_bfloat16_shards_lose_one_rounding_of_the_weights():
  bfloat16 = with_model(EXPERIMENT, compute_dtype="bfloat16")
  exact, rounded = (run(with_shards(bfloat16, shards), devices=8)[1] for shards in (1, 8))
  for ours, theirs in zip(rounded, exact, strict=True):
    # Relative 2^-9 for each of some ten layers.
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2**-9 * np.sqrt(10))
  assert rounded[0]["loss"] != exact[0]["loss"]


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_gradients_that_travel_in_bfloat16_train_as_well(shards):
  experiment = with_shards(EXPERIMENT, shards, gradient_dtype="bfloat16")
  _, metrics = run(experiment, devices=8, steps=STEPS)
  _, expected = on_one_device()
  # The first step's loss is of the same parameters, and its gradients are rounded eight times.
  assert metrics[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)
  norms = [one[0]["gradient_norm"] for one in (metrics, expected)]
  assert norms[0] == pytest.approx(norms[1], rel=2**-8)
  assert norms[0] != pytest.approx(norms[1], rel=1e-5)
  # Each of the following steps adds as much again.
  for ours, theirs in zip(metrics, expected, strict=True):
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2**-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_summed_in_their_dtype(dtype):
  mesh = make_mesh(parameter_shards=4)
  specs = {"weight": P(None, "shard"), "bias": P()}
  parts = np.random.default_rng(0).standard_normal((8, 4, 16)).astype(np.float32)

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(DATA_AXES), out_specs=specs)
  def total(parts):
    gradients = {"weight": parts[0], "bias": parts[0, 0]}
    rings = start_sums(gradients, specs, jnp.dtype(dtype), "reference")
    return sum_gradients(gradients, rings, jnp.dtype(dtype))

  result = jax.jit(total)(parts)
  expected = parts.sum(0, dtype=np.float64)
  # Each part and each of the sums is rounded to half of the last place.
  tolerance = 8 * float(jnp.finfo(dtype).eps) / 2 * np.abs(parts).sum(0).max()
  assert result["weight"].dtype == dtype
  np.testing.assert_allclose(
    np.asarray(result["weight"], np.float64), expected, rtol=0, atol=tolerance
  )
  # A small one is not rounded.
  assert result["bias"].dtype == jnp.float32
  np.testing.assert_allclose(result["bias"], expected[0], rtol=0, atol=1e-5)


def test_large_gradients_that_are_not_divided_travel_rounded():
  mesh = make_mesh(parameter_shards=4)
  specs = {"large": P(), "small": P()}

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(DATA_AXES), out_specs=specs)
  def total(ones):
    thirds = jnp.full(SMALL_ELEMENTS_MAX + 1, 1 / 3) * ones
    return sum_gradients({"large": thirds, "small": thirds[1:]}, (), jnp.dtype("bfloat16"))

  result = jax.jit(total)(np.ones(8, np.float32))
  assert (result["large"].dtype, result["small"].dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(result["small"], 8 / 3, rtol=1e-6)


def state_on(experiment, mesh):
  model = make_model(experiment)
  optimizer = make_optimizer(experiment, lambda step: 0.1, parameter_roles(model, mesh))
  return abstract_state(experiment, model, optimizer, mesh)


def test_a_device_holds_its_part_only():
  state = state_on(with_shards(EXPERIMENT, 8), make_mesh(parameter_shards=8))
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


@pytest.mark.parametrize(
  ("dtype", "gradient_dtype", "expected"),
  [
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
    # Weights that the network multiplies in float32 must not be rounded.
    ("float32", "bfloat16", "float32"),
  ],
)
def test_weights_with_a_gradient_kernel_have_the_dtype_of_their_gradients(
  dtype, gradient_dtype, expected
):
  parameters = {"squeeze": jnp.ones((2048, 1024)), "other": jnp.ones((2048, 1024))}
  has_kernel, has_none = (
    parameter_role("blocks/1/squeeze_excite/squeeze/weight", (2048, 1024), 8, has_kernels=kernels)
    for kernels in (True, False)
  )
  found = rounded_for_gradients(
    parameters,
    {"squeeze": has_kernel, "other": has_none},
    jnp.dtype(dtype),
    jnp.dtype(gradient_dtype),
  )
  assert (found["squeeze"].dtype, found["other"].dtype) == (expected, "float32")


def test_a_checkpoint_is_restored_on_another_mesh_to_the_bit(tmp_path):
  experiment = with_shards(EXPERIMENT, 4)

  def draw(described):
    generator = np.random.default_rng(1)
    return jax.tree.map(
      lambda x: jax.device_put(generator.standard_normal(x.shape).astype(x.dtype), x.sharding),
      described,
    )

  saved = draw(state_on(experiment, make_mesh(parameter_shards=4)))
  with Checkpoints(str(tmp_path), keep=1) as checkpoints:
    checkpoints.save(
      1,
      parameters=saved.parameters,
      ema=saved.ema,
      optimizer=saved.optimizer._asdict(),
      data_state={},
      metadata={"step": 1, "experiment": to_json(experiment)},
    )
    checkpoints.wait()
    for devices, shards in ((8, 8), (1, 1), (4, 2)):
      mesh = make_mesh(jax.devices()[:devices], parameter_shards=shards)
      wanted = state_on(experiment, mesh)
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
