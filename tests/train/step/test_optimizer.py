import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet.block_arrangement import arrange_blocks
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet, parameter_name
from tests.train.small_network import SMALL, TINY
from train.step.optimizer import sgd_agc
from train.step.parameter_groups import parameter_roles

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def model(small_networks):
  return NFNet(TINY.name, 10, block_execution="unrolled")


@pytest.fixture(scope="module")
def deeper_model(small_networks):
  """One with blocks that can be stacked."""
  return NFNet(SMALL.name, 10, block_execution="unrolled")


@pytest.fixture(scope="module")
def scanned_model(small_networks):
  return NFNet(SMALL.name, 10, block_execution="scan")


@pytest.fixture(scope="module")
def parameters(model):
  return jax.tree.map(jnp.asarray, initial_parameters(model, 0))


@pytest.fixture(scope="module")
def gradients(parameters):
  return drawn_like(parameters)


def drawn_like(parameters):
  leaves, structure = jax.tree.flatten(parameters)
  generator = np.random.default_rng(0)
  return structure.unflatten(
    [jnp.asarray(generator.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
  )


@functools.cache
def compiled(model, *, learning_rate=0.1, momentum=0.9, weight_decay=0.01, **hyper_parameters):
  """Returns an optimizer whose step is compiled once for all tests."""
  schedule = learning_rate if callable(learning_rate) else lambda step: learning_rate
  optimizer = sgd_agc(
    schedule,
    parameter_roles(model),
    momentum=momentum,
    weight_decay=weight_decay,
    **hyper_parameters,
  )
  return optimizer._replace(step=jax.jit(optimizer.step))


def assert_close(actual, expected, *, relative=1e-6, absolute):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=relative, atol=absolute), actual, expected
  )


def test_three_steps_without_clipping_are_those_of_optax(model, parameters, gradients):
  """optax's own Nesterov momentum and masked decay, put together independently."""
  decays = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "weight", parameters)
  reference = optax.chain(
    optax.add_decayed_weights(0.01, mask=decays),
    optax.trace(0.9, nesterov=True),
    optax.scale_by_learning_rate(0.1),
  )
  expected, state = parameters, reference.init(parameters)
  update = jax.jit(reference.update)
  for _ in range(3):
    updates, state = update(gradients, state, expected)
    expected = optax.apply_updates(expected, updates)

  ours = compiled(model, clipping=None)
  actual, state = parameters, ours.init(parameters)
  for _ in range(3):
    actual, state, ema, _ = ours.step(gradients, state, actual, None)
    assert ema is None
  assert_close(actual, expected, relative=1e-5, absolute=1e-6)
  assert int(state.step) == 3


def test_clips_all_but_the_classifiers_weight(model, parameters, gradients):
  def changes(clipping):
    optimizer = compiled(model, clipping=clipping)
    new = optimizer.step(gradients, optimizer.init(parameters), parameters, None)
    return jax.tree.map(jnp.subtract, new.parameters, parameters)

  clipped, plain = changes(1e-6), changes(None)
  for path, change in jax.tree.leaves_with_path(clipped):
    if (name := parameter_name(path)) == "classifier/weight":
      np.testing.assert_array_equal(change, plain["classifier"]["weight"])
    else:
      # Weight decay moves a parameter by at most a hundredth of its size.
      assert float(jnp.max(jnp.abs(change))) < 0.01, name


def test_each_block_of_a_stack_is_clipped_by_its_own_norms(deeper_model, scanned_model):
  keys = scanned_model.block_keys
  assert "2:4" in keys
  parameters = jax.tree.map(jnp.asarray, initial_parameters(deeper_model, 0))
  # Blocks whose gradients differ in size: a common norm would show.
  gradients = drawn_like(parameters)
  gradients["blocks"]["3"] = jax.tree.map(lambda g: g * 100, gradients["blocks"]["3"])

  def stepped(model, parameters, gradients):
    optimizer = compiled(model, clipping=0.05)
    return optimizer.step(gradients, optimizer.init(parameters), parameters, None).parameters

  one_by_one = stepped(deeper_model, parameters, gradients)
  stacked = stepped(
    scanned_model, arrange_blocks(parameters, keys), arrange_blocks(gradients, keys)
  )
  assert_close(arrange_blocks(stacked), one_by_one, relative=1e-5, absolute=1e-8)


def test_the_learning_rate_is_that_of_the_steps_done_before(model, parameters, gradients):
  optimizer = compiled(
    model,
    learning_rate=lambda step: jnp.where(step == 0, 0.0, 1.0),
    momentum=0.0,
    weight_decay=0.0,
    clipping=None,
  )
  state = optimizer.init(parameters)
  first, state, *_ = optimizer.step(gradients, state, parameters, None)
  second, state, *_ = optimizer.step(gradients, state, first, None)
  assert_close(first, parameters, relative=0, absolute=0)
  # Parameters and gradients are at most 8 here.
  assert_close(
    second, jax.tree.map(jnp.subtract, parameters, gradients), relative=0, absolute=2**-21
  )
  assert int(state.step) == 2


# Of the stacked parameters, those of transitions are not stacked.
@pytest.mark.parametrize("stacked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_average_and_the_norm_of_all_gradients(deeper_model, scanned_model, stacked):
  model = scanned_model if stacked else deeper_model
  parameters = jax.tree.map(jnp.asarray, initial_parameters(deeper_model, 0))
  gradients = drawn_like(parameters)
  old, g = (arrange_blocks(tree, model.block_keys) for tree in (parameters, gradients))
  optimizer = compiled(model, clipping=0.05, ema_decay=0.999)
  state = optimizer.init(old)._replace(step=jnp.asarray(8, jnp.int32))
  zeros = jax.tree.map(jnp.zeros_like, old)
  new = optimizer.step(g, state, old, zeros)
  # The decay is still (1 + 8) / (10 + 8).
  assert_close(new.ema, jax.tree.map(lambda x: 0.5 * x, new.parameters), absolute=0)
  assert float(new.gradient_norm) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-6)
  # Without an average, everything else is the same.
  plain = optimizer.step(g, state, old, None)
  assert plain.ema is None
  assert_close(new._replace(ema=None), plain, absolute=1e-7)


def test_parameters_that_are_not_those_of_the_roles_are_an_error(model, parameters):
  optimizer = compiled(model, clipping=None)
  fewer = {name: tree for name, tree in parameters.items() if name != "stem"}
  with pytest.raises(ValueError, match="stem"):
    optimizer.step(fewer, optimizer.init(fewer), fewer, None)
