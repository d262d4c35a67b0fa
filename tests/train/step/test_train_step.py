import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from nfnet.block_arrangement import arrange_blocks
from nfnet.initialization import initial_parameters
from tests.train.small_network import SMALL, TINY
from train.config.experiment import (
  Data,
  Experiment,
  Faults,
  Loss,
  Mixing,
  Model,
  Optimizer,
  Parallelism,
  Schedule,
)
from train.step import train_step as step_module
from train.step.mixing import mix
from train.step.optimizer import SGDAGCState
from train.step.schedule import learning_rate_schedule
from train.step.sharding import batch
from train.step.sharding.batch import put_batch
from train.step.sharding.mesh import make_mesh
from train.step.train_step import (
  initial_state,
  make_evaluation_step,
  make_model,
  make_optimizer,
  make_train_step,
  put_parameters,
)

# A few steps: compiling them well would take longer.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

BATCH = 16
EXPERIMENT = Experiment(
  name="test",
  model=Model(
    variant=TINY.name,
    compute_dtype="float32",
    block_execution="unrolled",
    stochastic_depth_rate=0.5,
    dropout_rate=0.2,
  ),
  data=Data(num_classes=10, batch_size=BATCH),
  optimizer=Optimizer(peak_learning_rate=0.1, warmup_steps=1, ema_decay=0.9),
  loss=Loss(label_smoothing=0.1),
  schedule=Schedule(train_steps=20),
)


def make_batch():
  generator = np.random.default_rng(0)
  weight = np.ones(BATCH, np.float32)
  weight[3] = 0
  return {
    "image": generator.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8),
    "labels": generator.integers(0, 10, (BATCH, 1)).astype(np.int32),
    "weight": weight,
    "position": np.arange(BATCH, dtype=np.int32),
  }


def run(experiment, *, devices=1, steps=3, batch=None):
  """The state after some steps on one batch, and the metrics of each step."""
  shards = experiment.parallelism.parameter_shards
  mesh = make_mesh(jax.devices()[:batch], parameter_shards=shards)
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples=1000)
  optimizer = make_optimizer(experiment, rate)
  parameters = put_parameters(model, initial_parameters(model, experiment.seed), mesh)
  state = initial_state(experiment, optimizer, parameters)
  step = jit(make_train_step(experiment, model, optimizer, rate, mesh), donate_argnums=0)
  batch = put_batch(make_batch() if batch is None else batch, mesh)
  metrics = []
  for _ in range(steps):
    state, step_metrics = step(state, batch)
    metrics.append(jax.device_get(step_metrics))
  return jax.device_get(state), metrics


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def one_device(small_networks):
  return run(EXPERIMENT)


def assert_close(left, right, relative=1e-5):
  """Each leaf within `relative` of its largest value."""
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
  ):
    np.testing.assert_allclose(
      a, b, rtol=relative, atol=relative * max(np.abs(b).max(), 1e-6), err_msg=str(path)
    )


def test_devices_accumulation_and_scan_change_nothing():
  """Float32 sums of 16 examples in another order; 3 steps of a network of 4 blocks."""
  unrolled = dataclasses.replace(EXPERIMENT.model, variant=SMALL.name)
  spread = dataclasses.replace(
    EXPERIMENT,
    model=dataclasses.replace(unrolled, block_execution="scan"),
    optimizer=dataclasses.replace(EXPERIMENT.optimizer, gradient_accumulation=2),
  )
  one_device = run(dataclasses.replace(EXPERIMENT, model=unrolled))
  state, metrics = run(spread, devices=8)
  assert "2:4" in state.parameters["blocks"]
  assert_close(arrange_blocks(state.parameters), one_device[0].parameters)
  assert_close(arrange_blocks(state.ema), one_device[0].ema)
  assert_close(metrics, one_device[1])


def test_an_example_of_weight_zero_changes_nothing(one_device):
  batch = make_batch()
  batch["image"][3] = 255 - batch["image"][3]
  batch["labels"][3] = -1
  state, metrics = run(EXPERIMENT, batch=batch)
  assert_close(state.parameters, one_device[0].parameters)
  assert [step["examples"] for step in metrics] == [BATCH - 1] * 3


def test_pallas_without_a_kernel_falls_back_and_is_counted(one_device):
  kernels.fallback_counts.clear()
  pallas = dataclasses.replace(EXPERIMENT.model, kernels="pallas")
  state, _ = run(dataclasses.replace(EXPERIMENT, model=pallas))
  assert_close(state.parameters, one_device[0].parameters, relative=0)
  assert {op for op, _ in kernels.fallback_counts} == {
    "conv_se_residual",
    "scaled_ws_conv",
    "stem",
  }


def test_loss_falls_on_a_fixed_batch():
  _, metrics = run(EXPERIMENT, steps=20)
  assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3


def test_metrics_are_those_of_the_step(one_device):
  first, second, *_ = one_device[1]
  assert first["learning_rate"] == 0
  assert second["learning_rate"] == pytest.approx(0.1)
  assert first["gradient_norm"] > 0
  assert 0 <= first["top1"] <= 1


def exploded(parameters):
  parameters["classifier"]["bias"] = np.full_like(parameters["classifier"]["bias"], np.nan)
  return parameters


# With "pallas" it is a branch, on a CPU around references.
@pytest.mark.parametrize(("devices", "implementation"), [(1, "pallas"), (2, "reference")])
@pytest.mark.parametrize(
  ("faults", "change"),
  [(Faults(), exploded), (Faults(loss_max=0.01), lambda parameters: parameters)],
)
def test_a_bad_step_changes_nothing_but_the_count(devices, implementation, faults, change):
  experiment = dataclasses.replace(
    EXPERIMENT,
    faults=faults,
    model=dataclasses.replace(EXPERIMENT.model, kernels=implementation),
    parallelism=Parallelism(parameter_shards=batch),
  )
  mesh = make_mesh(jax.devices()[:batch], parameter_shards=batch)
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples=1000)
  optimizer = make_optimizer(experiment, rate)
  parameters = put_parameters(model, change(initial_parameters(model, 0)), mesh)
  state = initial_state(experiment, optimizer, parameters)
  momentum = jax.tree.map(lambda x: x + 1e-3, state.optimizer.momentum)
  state = dataclasses.replace(state, optimizer=SGDAGCState(jnp.asarray(7, jnp.int32), momentum))
  # A copy: the state is donated.
  before = jax.tree.map(np.array, state)
  step = jit(make_train_step(experiment, model, optimizer, rate, mesh), donate_argnums=0)
  after, metrics = jax.device_get(step(state, put_batch(make_batch(), mesh)))
  assert metrics["skipped"] == 1
  assert np.isnan(metrics["gradient_norm"])
  assert after.optimizer.step == 8
  for name in ("parameters", "average"):
    jax.tree.map(assert_same_bits, getattr(after, name), getattr(before, name))
  jax.tree.map(assert_same_bits, after.optimizer.momentum, before.optimizer.momentum)


def assert_same_bits(one, other):
  assert one.tobytes() == other.tobytes()


def test_a_good_step_is_not_skipped(one_device):
  assert [step["skipped"] for step in one_device[1]] == [0, 0, 0]


def test_images_are_mixed_before_anything_else_on_any_number_of_devices(monkeypatch):
  mixing = Mixing(mixup_alpha=0.2, cutmix=True)
  state, (metrics,) = run(dataclasses.replace(EXPERIMENT, mixing=mixing), devices=4, steps=1)
  batch = make_batch()
  mixed = mix(batch, step_module._example_keys(0, jnp.int32(0), batch["position"]), mixing)
  assert (np.asarray(mixed["partner_share"]) > 0.1).sum() > BATCH / 4
  # Mixed already, they go through the plain step on one device.
  on_device = (*batch._ON_DEVICE, "partner_labels", "partner_share")
  monkeypatch.setattr(batch, "_ON_DEVICE", on_device)
  expected, (expected_metrics,) = run(EXPERIMENT, steps=1, batch=jax.device_get(mixed))
  assert_close(state, expected)
  assert_close(metrics, expected_metrics)


def test_evaluation_sums_over_real_examples_without_smoothing():
  mesh = make_mesh(jax.devices()[:4])
  model = make_model(EXPERIMENT)
  parameters = initial_parameters(model, 0)
  parameters["classifier"]["weight"] *= 0
  step = jit(make_evaluation_step(model, EXPERIMENT.loss, mesh))
  batch = put_batch(make_batch(), mesh)
  sums = step(put_parameters(model, parameters, mesh), batch)
  assert float(sums["examples"]) == BATCH - 1
  np.testing.assert_allclose(sums["loss"], (BATCH - 1) * np.log(10), rtol=1e-5)
  # All logits are equal: the first classes win.
  labels = make_batch()["labels"][np.arange(BATCH) != 3, 0]
  assert float(sums["top1"]) == np.sum(labels == 0)
  assert float(sums["top5"]) == np.sum(labels < 5)
  np.testing.assert_array_equal(sums["class_examples"], np.bincount(labels, minlength=10))
  assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype(jnp.float32)}
