"""The step that is compiled for a TPU is the step that `train.run.loop` runs."""

import jax
import numpy as np
import pytest

from nfnet.initialization import initial_parameters
from profiling.compile.request import (
  FIELDS_OUTSIDE_THE_STEP,
  replace_fields,
  without_fields_outside_the_step,
)
from profiling.compile.step_worker import assumed_train_examples, step_and_operands
from tests.train import small_network
from train.config.overrides import override
from train.data.batches import train_batches
from train.data.dataset import train_examples
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule, train_steps, warmup_steps
from train.step.sharding.batch import put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters
from train.step.state import abstract_state, initial_state
from train.step.train_step import make_train_step

pytestmark = pytest.mark.usefixtures("small_networks")

CHANGES = {
  "model.dropout_rate": "0.25",
  "model.stochastic_depth_rate": "0.1",
  "mixing.cutmix": "true",
  "loss.label_smoothing": "0",
  "optimizer.weight_decay": "0.125",
  "faults.loss_max": "9",
  "seed": "7",
}
OUTSIDE_THE_STEP = {
  "name": "another",
  "data.path": "another",
  "data.train_split": "another",
  "data.crop_area_min": "0.5",
  "data.crop_aspect_ratio_max": "2",
  "data.horizontal_flip": "false",
  "data.rand_augment_layers": "4",
  "data.rand_augment_magnitude": "5",
  "data.repetitions": "2",
  "data.workers": "3",
  "data.bad_image_share_max": "0.5",
  "data.evaluation_split": "another",
  "data.evaluation_batch_size": "80",
  "data.evaluation_pixels": "64",
  "data.evaluation_resize": "squash",
  "data.evaluation_resize_margin": "8",
  "schedule.log_every_steps": "7",
  "schedule.evaluate_every_steps": "7",
  "schedule.checkpoint_every_steps": "7",
  "schedule.checkpoints_kept": "7",
  "faults.skipped_in_a_row_max": "7",
  "faults.then": "roll_back",
  "faults.roll_back_steps": "7",
  "faults.roll_backs_max": "7",
  "initial_weights": "another",
}


@pytest.fixture(scope="module")
def base():
  """Training with dropout, so that random numbers are drawn."""
  return override(small_network.experiment(), ["--config.model.dropout_rate=0.125"])


@pytest.fixture(scope="module")
def batch(base):
  """A batch of the demo's data, as the training loop puts it on the devices."""
  with train_batches(base.data, 0, shard_index=0, shard_count=1) as batches:
    return put_batch(next(batches), make_mesh())


def profiled_text(experiment):
  """Returns the program that the worker would compile, lowered for the devices that are there."""
  step, state, described = step_and_operands(
    without_fields_outside_the_step(experiment), make_mesh()
  )
  return step.lower(state, described).as_text()


def trained_text(experiment, batch):
  """Returns the program of training, lowered for the first step's state and a batch."""
  mesh = make_mesh()
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples(experiment.data))
  optimizer = make_optimizer(experiment, rate, parameter_roles(model, mesh))
  parameters = put_parameters(model, initial_parameters(model, experiment.seed), mesh)
  state = initial_state(experiment, optimizer, parameters)
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment, model, optimizer, mesh))
  step = make_train_step(experiment, model, optimizer, rate, mesh)
  return step.lower(jax.device_put(state, shardings), batch).as_text()


@pytest.fixture(scope="module")
def base_text(base):
  return profiled_text(base)


def test_the_described_batch_is_one_of_the_input_pipeline(base, batch):
  _, _, described = step_and_operands(base, make_mesh())

  def description(x):
    return x.shape, x.dtype, x.sharding

  assert jax.tree.map(description, described) == jax.tree.map(description, batch)


def test_the_profiled_step_is_that_of_training(base, batch, base_text):
  assert base_text == trained_text(base, batch)


def test_the_profiled_step_is_that_of_training_with_everything_on(base, batch, base_text):
  """All that earlier versions left out of the profiled step, and SAM."""
  everything = override(
    base,
    [
      "--config.model.dropout_rate=0.25",
      "--config.model.stochastic_depth_rate=0.1",
      "--config.mixing.mixup_alpha=0.2",
      "--config.mixing.cutmix=true",
      "--config.optimizer.weight_decay=0.125",
      "--config.sharpness.radius=0.05",
      "--config.sharpness.group_images=4",
      "--config.sharpness.ascent_share=0.5",
      "--config.faults.loss_max=9",
    ],
  )
  assert profiled_text(everything) == trained_text(everything, batch) != base_text


@pytest.mark.parametrize("field", CHANGES)
def test_what_changes_training_changes_the_profiled_step(field, base, base_text):
  assert profiled_text(override(base, [f"--config.{field}={CHANGES[field]}"])) != base_text


def test_fields_outside_the_step_do_not_change_it(base, base_text):
  assert set(OUTSIDE_THE_STEP) == FIELDS_OUTSIDE_THE_STEP
  changes = [f"--config.{field}={value}" for field, value in OUTSIDE_THE_STEP.items()]
  changed = override(base, changes)
  assert without_fields_outside_the_step(changed) == without_fields_outside_the_step(base)
  step, state, described = step_and_operands(changed, make_mesh())
  assert step.lower(state, described).as_text() == base_text


@pytest.mark.parametrize(
  ("epochs", "warmup", "expected"),
  # A run of any length, also of the largest data set, is longer than its warm-up.
  [(0.25, {"warmup_steps": 1565}, 1565), (360, {"warmup_steps": None, "warmup_epochs": 5}, 13_889)],
)
def test_a_run_in_epochs_is_taken_to_have_a_million_steps(epochs, warmup, expected, base):
  experiment = replace_fields(
    base, schedule={"train_epochs": epochs, "train_steps": None}, optimizer=warmup
  )
  examples = assumed_train_examples(experiment)
  assert train_steps(experiment, examples) == pytest.approx(10**6, rel=1e-5)
  assert warmup_steps(experiment, examples) == expected
  rate = learning_rate_schedule(experiment, examples)
  np.testing.assert_allclose(rate(expected), base.optimizer.peak_learning_rate, rtol=1e-3)
