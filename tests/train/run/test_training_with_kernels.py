"""Training with the kernels of the ops, as Pallas interprets them, and with their references."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import kernels
from nfnet import variants
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet, apply, standardized
from nfnet.variants import Variant
from tests.lowering import as_on_a_tpu
from train.step.model import arranged_parameter_shapes
from train.step.optimizer import sgd_agc
from train.step.parameter_groups import parameter_roles
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import parameter_specs
from train.step.sharding.standardized_filters import (
  differentiated,
  standardize,
  with_differentiated,
)

STEPS = 8
BATCH = 8
# Wide enough for the lanes, one and two groups, with and without projection and stride.
SMALL = Variant(
  name="small",
  stage_channels=(256, 512, 512, 512),
  stage_depths=(1, 2, 0, 0),
  dropout_rate=0.0,
  train_pixels=16,
  test_pixels=16,
  randaugment_magnitude=0,
)


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setitem(variants.VARIANTS, SMALL.name, SMALL)
  kernels.fallback_counts.clear()
  yield
  kernels.fallback_counts.clear()


@pytest.fixture
def lowered_for_a_tpu(monkeypatch):
  """Kernels run, interpreted, wherever they would run on a TPU; yields those that did."""
  ran = []

  def as_on_a_tpu_and_noted(*arguments, tpu=None, **others):
    # JAX asks for the platform too.
    if tpu is not None:
      ran.append(tpu)
    return as_on_a_tpu(*arguments, tpu=tpu, **others)

  monkeypatch.setattr(jax.lax, "platform_dependent", as_on_a_tpu_and_noted)
  with pltpu.force_tpu_interpret_mode(True):
    yield ran


def trained(implementation):
  """Returns the losses, and by how much each parameter changed."""
  model = NFNet(
    SMALL.name,
    10,
    block_execution="unrolled",
    stochastic_depth_rate=0.25,
    implementation=implementation,
  )
  optimizer = sgd_agc(
    lambda _: jnp.float32(0.05),
    parameter_roles(model),
    momentum=0.9,
    weight_decay=2e-5,
    clipping=0.1,
    implementation=implementation,
  )
  generator = np.random.default_rng(0)
  images = jnp.asarray(generator.standard_normal((BATCH, 16, 16, 3)), jnp.float32)
  labels = jnp.asarray(generator.integers(0, 10, BATCH))
  keys = jax.random.split(jax.random.key(0), BATCH)

  def loss(parameters):
    logits = jax.nn.log_softmax(apply(model, parameters, images, keys=keys))
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1))

  @jax.jit
  def step(parameters, state):
    # As `train.step.train_step` does it with kernels.
    prepared, pull_back = parameters, lambda gradients: gradients
    if implementation == "pallas":
      prepared, pull_back = standardize(
        model,
        parameters,
        parameter_specs(model, make_mesh(jax.devices()[:1])),
        jnp.dtype("float32"),
      )
    value, gradients = jax.value_and_grad(
      lambda arrays: loss(with_differentiated(prepared, arrays))
    )(differentiated(prepared))
    parameters, state, _, _ = optimizer.step(pull_back(gradients), state, parameters, None)
    return parameters, state, value

  before = parameters = initial_parameters(model, 0)
  for block in parameters["blocks"].values():
    # From 0, with which training starts, branches would hardly learn in so few steps.
    block["skip_gain"] += np.float32(0.5)
  state = optimizer.init(parameters)
  result = []
  for _ in range(STEPS):
    parameters, state, value = step(parameters, state)
    result.append(float(value))
  return np.array(result), jax.tree.map(np.subtract, jax.device_get(parameters), before)


# One block of two groups, with a projection.
SHALLOW = dataclasses.replace(SMALL, stage_channels=(512,) * 4, stage_depths=(1, 0, 0, 0))


# Of the interpreted step, only tracing and compiling take long, as long for each block.
@pytest.mark.parametrize(
  "variant",
  [
    pytest.param(SHALLOW, id="one block"),
    pytest.param(
      dataclasses.replace(SMALL, stage_depths=(1, 1, 0, 0)), id="stride", marks=pytest.mark.slow
    ),
    pytest.param(SMALL, id="no projection", marks=pytest.mark.slow),
  ],
)
def test_eight_steps_agree(variant, small, lowered_for_a_tpu):
  variants.VARIANTS[SMALL.name] = variant
  expected, expected_changes = trained("reference")
  assert not lowered_for_a_tpu
  actual, changes = trained("pallas")
  # Their sums may be the references' to the bit.
  assert len(lowered_for_a_tpu) > 10
  assert not kernels.fallback_counts
  # It learns: a tolerance for losses that do not change would mean nothing.
  assert expected[-1] < 0.7 * expected[0]
  # Float32 sums in another order differ by 2^-24 x sqrt(9 x 512) of a value at each step, and the
  # differences grow with the steps, which follow from one another.
  tolerance = 2**-24 * np.sqrt(9 * 512) * np.arange(1, STEPS + 1)
  assert (np.abs(actual - expected) <= tolerance * np.maximum(expected, 1)).all()
  # Clipping leaves too little of a bias, which starts from 0, for the losses to show.
  for (path, ours), theirs in zip(
    jax.tree.leaves_with_path(changes), jax.tree.leaves(expected_changes), strict=True
  ):
    assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs), path


# Each is half a minute of tracing; the shapes of blocks are those of a loop.
UNROLLED = pytest.param("unrolled", marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("variant", "in_a_step"),
  [
    ("F7", False),
    ("F7+", True),
    pytest.param("F7", True, marks=pytest.mark.slow),
    pytest.param("F7+", False, marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize("block_execution", ["scan", UNROLLED])
def test_no_op_of_a_published_network_falls_back(variant, block_execution, in_a_step, small):
  """F7 and F7+ have the shapes of all the others: see test_op_shapes.py."""
  model = NFNet(
    variant,
    1000,
    implementation="pallas",
    compute_dtype=jnp.dtype("bfloat16"),
    stochastic_depth_rate=0.1,
    block_execution=block_execution,
  )
  images = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 32))

  def logits(parameters, images, keys):
    return apply(model, prepare(parameters), images, keys=keys)

  def prepare(parameters):
    if not in_a_step:
      return parameters
    return standardized(model, parameters, gradient_dtype=jnp.dtype("bfloat16"))

  jax.eval_shape(logits, arranged_parameter_shapes(model), images, keys)
  assert not kernels.fallback_counts


@pytest.mark.parametrize(
  ("variant", "block_execution", "gradient_dtype"),
  [
    pytest.param("F7", "scan", "float32", marks=pytest.mark.slow),
    ("F7", "scan", "bfloat16"),
    ("F7+", "scan", "float32"),
    ("F7+", "scan", "bfloat16"),
    pytest.param("F7+", "unrolled", "float32", marks=pytest.mark.slow),
    pytest.param("F7", "unrolled", "float32", marks=pytest.mark.slow),
    pytest.param("F7+", "unrolled", "bfloat16", marks=pytest.mark.slow),
  ],
)
def test_no_parameter_of_a_published_network_falls_back(
  variant, block_execution, gradient_dtype, small
):
  """F7 and F7+ have the shapes of all the others: see test_op_shapes.py."""
  model = NFNet(variant, 1000, block_execution=block_execution)
  parameters = arranged_parameter_shapes(model)
  optimizer = sgd_agc(
    lambda _: jnp.float32(0.1),
    parameter_roles(model),
    momentum=0.9,
    weight_decay=2e-5,
    clipping=0.01,
    ema_decay=0.99,
    implementation="pallas",
  )
  state = jax.eval_shape(optimizer.init, parameters)
  gradients = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(gradient_dtype)), parameters
  )
  jax.eval_shape(optimizer.step, gradients, state, parameters, parameters)
  assert not kernels.fallback_counts
