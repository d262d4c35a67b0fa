import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from nfnet.block_arrangement import arrange_blocks
from nfnet.initialization import initial_parameters
from tests.train.small_network import SMALL
from tests.train.step.training import (
  BATCH,
  EXPERIMENT,
  assert_close,
  make_batch,
  run,
  training,
  with_model,
  with_shards,
)
from train.config.experiment import Faults, Mixing
from train.step.example_keys import example_keys
from train.step.mixing import mix
from train.step.schedule import learning_rate_schedule
from train.step.sharding.batch import batch_sharding, put_batch
from train.step.train_step import make_train_step

pytestmark = pytest.mark.usefixtures("small_networks")
# Under a name of its own, it is traced in this file.
PALLAS = dataclasses.replace(with_model(EXPERIMENT, kernels="pallas"), name="counted")


@pytest.fixture(scope="module")
def with_fallbacks(small_networks):
  """The state after three steps with kernels, and the ops that ran their references instead."""
  kernels.fallback_counts.clear()
  state, _ = run(PALLAS)
  return state, {op for op, _ in kernels.fallback_counts}


def test_devices_accumulation_and_scan_change_nothing():
  """Float32 sums of 16 examples in another order; 3 steps of a network of 4 blocks."""
  unrolled = with_model(EXPERIMENT, variant=SMALL.name)
  spread = dataclasses.replace(
    with_model(unrolled, block_execution="scan"),
    optimizer=dataclasses.replace(EXPERIMENT.optimizer, gradient_accumulation=2),
  )
  expected, expected_metrics = run(unrolled)
  state, metrics = run(spread, devices=8)
  assert "2:4" in state.parameters["blocks"]
  assert_close(arrange_blocks(state.parameters), expected.parameters)
  assert_close(arrange_blocks(state.ema), expected.ema)
  assert_close(metrics, expected_metrics)


def test_an_example_of_weight_zero_changes_nothing():
  batch = make_batch()
  batch["image"][3] = 255 - batch["image"][3]
  batch["labels"][3] = -1
  state, metrics = training(EXPERIMENT).run(3, batch)
  assert_close(state.parameters, run(EXPERIMENT)[0].parameters)
  assert [step["examples"] for step in metrics] == [BATCH - 1] * 3


def test_pallas_without_a_kernel_falls_back_and_is_counted(with_fallbacks):
  state, fallbacks = with_fallbacks
  assert_close(state.parameters, run(EXPERIMENT)[0].parameters, relative=0)
  assert fallbacks == {
    "standardized_conv_se",
    "standardized_convolution",
    "add_up",
    "stem",
  }


def test_the_loss_falls_on_a_fixed_batch():
  _, metrics = run(EXPERIMENT, steps=20)
  assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3


def test_metrics_are_those_of_the_step():
  first, second, _ = run(EXPERIMENT)[1]
  assert first["learning_rate"] == 0
  assert second["learning_rate"] == pytest.approx(0.1)
  assert first["gradient_norm"] > 0
  assert 0 <= first["top1"] <= 1
  assert first["skipped"] == second["skipped"] == 0


@pytest.mark.parametrize(
  ("experiment", "devices", "classifier_bias"),
  [
    (EXPERIMENT, 1, np.nan),
    # It is a branch there, on a CPU around references.
    (PALLAS, 1, np.nan),
    (dataclasses.replace(with_shards(EXPERIMENT, 2), faults=Faults(loss_max=0.01)), 2, 0.0),
  ],
  ids=["values", "branch", "loss_max on two devices"],
)
@pytest.mark.usefixtures("with_fallbacks")  # They are counted where the step is traced first.
def test_a_bad_step_changes_nothing_but_the_count(experiment, devices, classifier_bias):
  trained = training(experiment, devices=devices)
  parameters = initial_parameters(trained.model, 0)
  parameters["classifier"]["bias"] += np.float32(classifier_bias)
  state = trained.start(parameters)
  momentum = jax.tree.map(lambda x: x + 1e-3, state.optimizer.momentum)
  optimizer = state.optimizer._replace(step=state.optimizer.step + 7, momentum=momentum)
  state = dataclasses.replace(state, optimizer=optimizer)
  # A copy: the state is donated.
  before = jax.tree.map(np.array, state)
  after, metrics = jax.device_get(trained.step(state, put_batch(make_batch(), trained.mesh)))
  assert metrics["skipped"] == 1
  assert np.isnan(metrics["gradient_norm"])
  assert after.optimizer.step == 8
  for ours, theirs in (
    (after.parameters, before.parameters),
    (after.ema, before.ema),
    (after.optimizer.momentum, before.optimizer.momentum),
  ):
    jax.tree.map(assert_same_bits, ours, theirs)


def assert_same_bits(one, other):
  assert one.tobytes() == other.tobytes()


def test_images_are_mixed_before_anything_else_on_any_number_of_devices():
  mixing = Mixing(mixup_alpha=0.2, cutmix=True)
  state, metrics = run(dataclasses.replace(EXPERIMENT, mixing=mixing), devices=4, steps=1)
  batch = make_batch()
  # All at once: one by one, its operations take longer to compile.
  mixed = jax.jit(
    lambda batch: mix(batch, example_keys(0, jnp.int32(0), batch["position"]), mixing)
  )(batch)
  assert (np.asarray(mixed["partner_share"]) > 0.1).sum() > BATCH / 4
  # Mixed already, they go through the plain step on one device.
  plain = training(EXPERIMENT)
  on_device = jax.device_put(mixed, batch_sharding(plain.mesh))
  expected, expected_metrics = plain.run_on_devices(1, on_device)
  assert_close(state, expected)
  assert_close(metrics, expected_metrics)


def test_losses_are_multiplied_by_the_weights_of_the_classes():
  """The same as a batch whose examples count as much, but for what the sum is divided by."""
  of_training = training(EXPERIMENT)
  weights = np.linspace(0, 3, 10).astype(np.float32)
  batch = make_batch()
  step = make_train_step(
    EXPERIMENT,
    of_training.model,
    of_training.optimizer,
    learning_rate_schedule(EXPERIMENT, train_examples=1000),
    of_training.mesh,
    class_weights=weights,
  )
  _, metrics = step(of_training.start(), put_batch(batch, of_training.mesh))
  batch["weight"] *= weights[batch["labels"][:, 0]]
  _, (expected,) = of_training.run(1, batch)
  factor = float(batch["weight"].sum()) / (BATCH - 1)
  assert factor != pytest.approx(1, rel=0.01)
  for name in ("loss", "gradient_norm"):
    assert float(metrics[name]) == pytest.approx(factor * float(expected[name]), rel=1e-4)
  assert float(metrics["examples"]) == BATCH - 1
