"""Trainings of a few steps on one batch, which several test files compare."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest

from kernels.sgd_agc.formulas import PARAMETER_NORM_FLOOR
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet
from tests.train.small_network import TINY
from train.config.experiment import (
  Data,
  Experiment,
  Loss,
  Model,
  Optimizer,
  Parallelism,
  Schedule,
)
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule
from train.step.sharding.batch import put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters
from train.step.state import TrainState, abstract_state, initial_state
from train.step.train_step import make_train_step

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


def with_model(experiment, **changes):
  return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))


def with_shards(experiment, shards, **changes):
  parallelism = Parallelism(parameter_shards=shards, **changes)
  return dataclasses.replace(experiment, parallelism=parallelism)


def make_batch():
  """Returns a batch as the input pipeline gives it, in which one example does not count."""
  generator = np.random.default_rng(0)
  weight = np.ones(BATCH, np.float32)
  weight[3] = 0
  return {
    "image": generator.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8),
    "labels": generator.integers(0, 10, (BATCH, 1)).astype(np.int32),
    "weight": weight,
    "position": np.arange(BATCH, dtype=np.int32),
  }


@dataclasses.dataclass(frozen=True)
class Training:
  """A compiled training step, and all that is needed to start with it."""

  experiment: Experiment
  model: NFNet
  mesh: jax.sharding.Mesh
  step: Callable
  optimizer: object

  def start(self, parameters=None) -> TrainState:
    """Returns the state before the first step, of parameters on the host."""
    if parameters is None:
      parameters = initial_parameters(self.model, self.experiment.seed)
    on_devices = put_parameters(self.model, parameters, self.mesh)
    state = initial_state(self.experiment, self.optimizer, on_devices)
    # As the training loop does: for a count that is not on the mesh, the step would be compiled
    # again for the second step.
    like = abstract_state(self.experiment, self.model, self.optimizer, self.mesh)
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, like))

  def run(self, steps, batch=None):
    """Returns the state after some steps on one batch, and the metrics of each, on the host."""
    batch = put_batch(make_batch() if batch is None else batch, self.mesh)
    return self.run_on_devices(steps, batch)

  def run_on_devices(self, steps, batch):
    """Does the same with a batch that is on the devices already."""
    state, metrics = self.start(), []
    for _ in range(steps):
      state, step_metrics = self.step(state, batch)
      metrics.append(jax.device_get(step_metrics))
    return jax.device_get(state), metrics


def training(experiment, *, devices=1, learning_rate=None) -> Training:
  """Returns the training of an experiment, which is compiled once for all tests of a process.

  Args:
    experiment: of `small_network`'s networks.
    devices: number of devices.
    learning_rate: of all steps; None is the experiment's schedule.
  """
  return _training(experiment, devices, learning_rate)


# To a cache, a default that is given is another argument than one that is left out.
@functools.cache
def _training(experiment, devices, learning_rate):
  mesh = make_mesh(
    jax.devices()[:devices], parameter_shards=experiment.parallelism.parameter_shards
  )
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples=1000)
  if learning_rate is not None:
    rate = lambda step: learning_rate  # noqa: E731
  optimizer = make_optimizer(experiment, rate, parameter_roles(model, mesh))
  step = make_train_step(experiment, model, optimizer, rate, mesh)
  return Training(experiment, model, mesh, step, optimizer)


def run(experiment, *, devices=1, steps=3):
  """Returns the state after some steps on `make_batch`, and the metrics of each."""
  return _run(experiment, devices, steps)


@functools.cache
def _run(experiment, devices, steps):
  return training(experiment, devices=devices).run(steps)


def assert_close(left, right, relative=1e-5):
  """Asserts that each leaf is within `relative` of its largest value."""
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
  ):
    np.testing.assert_allclose(
      a, b, rtol=relative, atol=relative * max(np.abs(b).max(), 1e-6), err_msg=str(path)
    )


def assert_same_training(ours, theirs):
  """Asserts that two runs agree up to the order of float32 sums.

  Within 1e-5: losses, each tree as a whole, and each parameter of at least AGC's floor of 1e-3.
  Momentum, as sums of gradients in which terms cancel, is compared as a whole only: the gain of one
  convolution differs by 2.3e-5.
  """
  (state, metrics), (expected, expected_metrics) = ours, theirs
  for one, other in zip(metrics, expected_metrics, strict=True):
    assert jax.tree.map(float, one) == pytest.approx(jax.tree.map(float, other), rel=1e-5)
  momentum, expected_momentum = state.optimizer.momentum, expected.optimizer.momentum
  difference = jax.tree.map(np.subtract, momentum, expected_momentum)
  assert norm(difference) < 1e-5 * norm(expected_momentum)
  for tree, expected_tree in ((state.parameters, expected.parameters), (state.ema, expected.ema)):
    difference = jax.tree.map(np.subtract, tree, expected_tree)
    assert norm(difference) < 1e-5 * norm(expected_tree)
    for one, other in zip(jax.tree.leaves(difference), jax.tree.leaves(expected_tree), strict=True):
      assert np.abs(one).max() < 1e-5 * max(np.abs(other).max(), PARAMETER_NORM_FLOOR)


def norm(tree):
  """Returns the norm of all leaves together."""
  return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))
