import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet.block_arrangement import arrange_blocks
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet
from tests.train.small_network import SMALL, TINY
from train.step.gradient_transformations import (
  adaptive_gradient_clipping,
  nesterov_sgd_with_agc,
  nfnet_roles,
  uniform_roles,
)
from train.step.gradients.sharpness_aware import ascend
from train.step.optimizer import sgd_agc
from train.step.parameter_groups import parameter_roles

pytestmark = pytest.mark.usefixtures("small_networks")


def drawn(like, seed):
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * generator.standard_normal(np.shape(x)), jnp.float32), like
  )


@pytest.fixture(scope="module")
def model(small_networks):
  return NFNet(TINY.name, 10)


@pytest.fixture(scope="module")
def parameters(model):
  """Returns one parameter of each role, since each takes its time to compile."""
  arranged = arrange_blocks(initial_parameters(model, 0), model.block_keys)
  block = {"conv0": arranged["blocks"]["0"]["conv0"], "skip_gain": np.float32(0)}
  stack = jax.tree.map(lambda x: np.stack([x, 2 * x]), block)
  return jax.tree.map(
    jnp.asarray, {"blocks": {"0": block, "1:3": stack}, "classifier": arranged["classifier"]}
  )


def stepper(transformation):
  @jax.jit
  def step(gradients, state, parameters):
    updates, state = transformation.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state

  return step


def test_several_steps_are_those_of_the_training_step(model, parameters):
  schedule = optax.linear_schedule(0.1, 0.02, 4)
  common = dict(momentum=0.9, weight_decay=1e-2, clipping=0.02)
  ours = sgd_agc(schedule, nfnet_roles(parameters), **common)
  transformation = nesterov_sgd_with_agc(schedule, **common)
  expected, expected_state = parameters, ours.init(parameters)
  actual, state = parameters, transformation.init(parameters)
  reference_step, step = jax.jit(ours.step), stepper(transformation)
  for seed in range(4):
    gradients = drawn(parameters, seed)
    expected, expected_state, *_ = reference_step(gradients, expected_state, expected, None)
    actual, state = step(gradients, state, actual)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), actual, expected
  )
  changed = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), actual, parameters)
  assert min(jax.tree.leaves(changed)) > 0


def test_roles_by_name_are_those_of_the_training_step(small_networks):
  for block_execution in ("scan", "unrolled"):
    model = NFNet(SMALL.name, 10, block_execution=block_execution)
    arranged = arrange_blocks(initial_parameters(model, 0), model.block_keys)
    assert nfnet_roles(arranged) == parameter_roles(model)


def own_network():
  shapes = {"filters": (3, 3, 4, 5), "matrix": (5, 2), "gain": (5,), "scale": ()}
  return drawn({name: np.zeros(shape) for name, shape in shapes.items()}, 0)


def test_agc_alone_is_that_of_optax_in_any_network():
  """optax has its own AGC, with the same floor of the norm."""
  parameters = own_network()
  gradients = drawn(parameters, 1)
  ours = adaptive_gradient_clipping(0.1, roles=uniform_roles)
  theirs = optax.adaptive_grad_clip(0.1)
  actual, _ = ours.update(gradients, ours.init(parameters), parameters)
  expected, _ = theirs.update(gradients, theirs.init(parameters), parameters)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), actual, expected)
  assert not np.allclose(actual["filters"], gradients["filters"])


def test_agc_before_optaxs_sgd_is_the_whole_optimizer():
  parameters = own_network()
  gradients = drawn(parameters, 1)
  whole = nesterov_sgd_with_agc(0.5, weight_decay=0.0, clipping=0.1, roles=uniform_roles)
  chain = optax.chain(
    adaptive_gradient_clipping(0.1, roles=uniform_roles), optax.sgd(0.5, 0.9, nesterov=True)
  )
  found = []
  for transformation in (whole, chain):
    new, state, step = parameters, transformation.init(parameters), stepper(transformation)
    for _ in range(2):
      new, state = step(gradients, state, new)
    found.append(new)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *found)


def test_the_classifiers_weight_is_not_clipped_and_stacked_blocks_are_clipped_one_by_one():
  shape = (2, 1, 1, 8, 4)
  parameters = {
    "blocks": {"1:3": {"conv0": {"weight": drawn(np.zeros(shape), 0)}}},
    "classifier": {"weight": jnp.ones((4, 2))},
  }
  gradients = jax.tree.map(lambda x: 100 * jnp.ones_like(x), parameters)
  clip = adaptive_gradient_clipping(0.01)
  clipped, _ = clip.update(gradients, clip.init(parameters), parameters)
  np.testing.assert_array_equal(clipped["classifier"]["weight"], 100)
  weight = parameters["blocks"]["1:3"]["conv0"]["weight"]
  np.testing.assert_allclose(
    np.linalg.norm(clipped["blocks"]["1:3"]["conv0"]["weight"], axis=3),
    0.01 * np.linalg.norm(weight, axis=3),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: nesterov_sgd_with_agc(-1), "learning_rate=-1: must be a schedule, or a finite number"),
    (lambda: nesterov_sgd_with_agc(jnp.float32(jnp.nan)), "learning_rate=nan"),
    (
      lambda: nesterov_sgd_with_agc(0.1, weight_decay=jnp.inf),
      "weight_decay=inf: must be a finite",
    ),
    (lambda: adaptive_gradient_clipping(None), "clipping=None: must be a finite number above 0"),
    (
      lambda: adaptive_gradient_clipping(0.1, roles=uniform_roles).update(
        {"a": jnp.ones(1)}, None, {"a": jnp.ones(8)}
      ),
      r"gradients and parameters differ in 'a': shape \[1\] and shape \[8\]",
    ),
    (lambda: ascend({"a": 1.0}, {"b": 1.0}, 0.1), "differ in 'a': none and shape"),
    (lambda: ascend({"a": 1.0}, {"a": 1.0}, -0.1), r"radius=-0\.1: must be a finite number"),
    (lambda: nesterov_sgd_with_agc(0.1, momentum=1.0), "momentum=1.0"),
    (lambda: nesterov_sgd_with_agc(0.1, weight_decay=-1.0), r"weight_decay=-1\.0"),
    (lambda: nesterov_sgd_with_agc(0.1, clipping=0.0), "clipping=0.0"),
    (lambda: nesterov_sgd_with_agc(0.1, implementation="cuda"), "implementation='cuda'"),
    (lambda: adaptive_gradient_clipping(-0.1), r"clipping=-0\.1: must be a finite number above 0"),
    (lambda: adaptive_gradient_clipping(0.1).update({}, None), "needs the parameters"),
    (lambda: nesterov_sgd_with_agc(0.1).init({"Dense_0": jnp.ones(3)}), "'Dense_0' matches no"),
  ],
)
def test_mistakes_end_in_one_line(call, message):
  with pytest.raises(ValueError, match=message) as raised:
    call()
  assert "\n" not in str(raised.value)


def test_numbers_may_be_traced():
  parameters = own_network()

  @jax.jit
  def step(rate, radius):
    optimizer = nesterov_sgd_with_agc(rate, roles=uniform_roles)
    worst = ascend(parameters, parameters, radius)
    return optimizer.update(worst, optimizer.init(parameters), parameters)[0]

  assert jax.tree.map(jnp.shape, step(0.1, 0.2)) == jax.tree.map(jnp.shape, parameters)


def test_filters_and_matrices_decay_and_vectors_do_not():
  parameters = {
    name: jnp.ones((1,) * axes) for name, axes in (("c", 4), ("m", 2), ("b", 1), ("s", 0))
  }
  zeros = jax.tree.map(jnp.zeros_like, parameters)
  optimizer = nesterov_sgd_with_agc(1.0, momentum=0.0, weight_decay=0.5, roles=uniform_roles)
  updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
  assert {name: float(update.sum()) for name, update in updates.items()} == {
    "c": -0.5,
    "m": -0.5,
    "b": 0.0,
    "s": 0.0,
  }


def test_clipped_gradients_keep_their_dtype():
  parameters = {"m": jnp.ones((3, 2), jnp.bfloat16)}
  transformation = adaptive_gradient_clipping(0.01, roles=uniform_roles)
  clipped, _ = transformation.update(parameters, transformation.init(parameters), parameters)
  assert clipped["m"].dtype == jnp.bfloat16
