import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet.block_arrangement import arrange_blocks
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet
from train.step.optimizer import ramped_decay, sgd_agc


@pytest.fixture(scope="module")
def parameters():
  return jax.tree.map(jnp.asarray, initial_parameters(NFNet("P0", 10), 0))


@pytest.fixture(scope="module")
def gradients(parameters):
  leaves, structure = jax.tree.flatten(parameters)
  generator = np.random.default_rng(0)
  return structure.unflatten(
    [jnp.asarray(generator.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
  )


def test_three_steps_without_clipping_are_those_of_optax(parameters, gradients):
  """optax's own Nesterov momentum and masked decay, put together independently."""
  decays = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "weight", parameters)
  reference = optax.chain(
    optax.add_decayed_weights(0.01, mask=decays),
    optax.trace(0.9, nesterov=True),
    optax.scale_by_learning_rate(0.1),
  )
  ours = sgd_agc(lambda step: 0.1, momentum=0.9, weight_decay=0.01, clipping=None)

  def run(transformation):
    state = transformation.init(parameters)
    current = parameters
    update = jax.jit(transformation.update)
    for _ in range(3):
      updates, state = update(gradients, state, current)
      current = optax.apply_updates(current, updates)
    return current

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(ours), run(reference)
  )


def test_clips_all_but_the_classifiers_weight(parameters, gradients):
  def updates(clipping):
    transformation = sgd_agc(lambda step: 1.0, momentum=0.0, weight_decay=0.0, clipping=clipping)
    state = transformation.init(parameters)
    return jax.jit(transformation.update)(gradients, state, parameters)[0]

  clipped, plain = updates(1e-6), updates(None)
  np.testing.assert_array_equal(clipped["classifier"]["weight"], plain["classifier"]["weight"])
  for path, update in jax.tree_util.tree_leaves_with_path(clipped):
    if [key.key for key in path] != ["classifier", "weight"]:
      assert float(jnp.max(jnp.abs(update))) < 1e-4, path


def test_each_block_of_a_stack_is_clipped_by_its_own_norms(parameters, gradients):
  keys = NFNet("P0", 10, block_execution="scan").block_keys
  assert "3:5" in keys
  # Blocks whose gradients differ in size: a common norm would show.
  gradients = jax.tree.map(jnp.copy, gradients)
  gradients["blocks"]["4"] = jax.tree.map(lambda g: g * 100, gradients["blocks"]["4"])
  transformation = sgd_agc(lambda step: 1.0, momentum=0.9, weight_decay=0.01, clipping=0.05)

  def updates(parameters, gradients):
    state = transformation.init(parameters)
    return jax.jit(transformation.update)(gradients, state, parameters)[0]

  one_by_one = updates(parameters, gradients)
  stacked = updates(arrange_blocks(parameters, keys), arrange_blocks(gradients, keys))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
    arrange_blocks(stacked),
    one_by_one,
  )


def test_learning_rate_is_that_of_the_steps_done_before(parameters, gradients):
  transformation = sgd_agc(
    lambda step: jnp.where(step == 0, 0.0, 1.0), momentum=0.0, weight_decay=0.0, clipping=None
  )
  state = transformation.init(parameters)
  update = jax.jit(transformation.update)
  first, state = update(gradients, state, parameters)
  second, state = update(gradients, state, parameters)
  assert not np.asarray(first["classifier"]["weight"]).any()
  # A difference of new and old parameters, which are at most 2 here.
  np.testing.assert_allclose(
    second["classifier"]["weight"], -gradients["classifier"]["weight"], rtol=0, atol=2**-22
  )
  assert int(state.step) == 2


@pytest.mark.parametrize("stacked", [False, True])
def test_a_step_is_an_update_an_average_and_the_norm_of_all_gradients(
  parameters, gradients, stacked
):
  transformation = sgd_agc(
    lambda step: 0.1, momentum=0.9, weight_decay=0.01, clipping=0.05, average_decay=0.999
  )
  keys = NFNet("P0", 10, block_execution="scan").block_keys if stacked else None
  old, g = (arrange_blocks(tree, keys) for tree in (parameters, gradients))
  state = transformation.init(old)._replace(step=jnp.asarray(8, jnp.int32))
  zeros = jax.tree.map(jnp.zeros_like, old)
  new, after, average, norm = jax.jit(transformation.step)(g, state, old, zeros)
  updates, after_update = jax.jit(transformation.update)(g, state, old)

  def close(actual, expected, atol=2**-22):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), actual, expected
    )

  close(new, optax.apply_updates(old, updates))
  close(after, after_update, atol=1e-7)
  # The decay is still (1 + 8) / (10 + 8).
  close(average, jax.tree.map(lambda x: 0.5 * x, new), atol=0)
  assert float(norm) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-6)


def test_without_an_average_there_is_none(parameters, gradients):
  transformation = sgd_agc(lambda step: 0.1, momentum=0.9, weight_decay=0.01, clipping=0.05)
  state = transformation.init(parameters)
  _, _, average, _ = jax.jit(transformation.step)(gradients, state, parameters)
  assert average is None


@pytest.mark.parametrize("step", [0, 9, 10**6])
def test_an_averages_decay_is_ramped(step):
  decay = ramped_decay(jnp.asarray(step, jnp.int32), 0.999)
  np.testing.assert_allclose(decay, min(0.999, (1 + step) / (10 + step)), rtol=1e-6)
