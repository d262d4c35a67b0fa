import dataclasses
import math

import numpy as np
import pytest

from nfnet.errors import UserError
from train.config.experiment import Data, Experiment, Optimizer, Schedule
from train.step.schedule import learning_rate_schedule, train_steps, warmup_steps

EXPERIMENT = Experiment(
  name="test",
  data=Data(batch_size=100),
  optimizer=Optimizer(peak_learning_rate=1.6, warmup_epochs=5),
  schedule=Schedule(train_epochs=360),
)


def test_epochs_become_steps():
  assert train_steps(EXPERIMENT, train_examples=1000) == 3600
  assert warmup_steps(EXPERIMENT, train_examples=1000) == 50


def test_steps_are_taken_as_they_are():
  experiment = dataclasses.replace(
    EXPERIMENT,
    optimizer=Optimizer(warmup_steps=7),
    schedule=Schedule(train_steps=70),
  )
  assert train_steps(experiment, train_examples=1000) == 70
  assert warmup_steps(experiment, train_examples=1000) == 7


def test_warms_up_from_zero_and_decays_as_a_cosine_to_zero():
  rate = learning_rate_schedule(EXPERIMENT, train_examples=1000)
  steps = np.arange(3601)
  want = np.where(
    steps < 50,
    1.6 * steps / 50,
    0.8 * (1 + np.cos(math.pi * (steps - 50) / 3550)),
  )
  got = [float(rate(step)) for step in steps[::25]]
  np.testing.assert_allclose(got, want[::25], atol=1e-6)


def test_warmup_that_takes_all_steps_is_refused():
  with pytest.raises(UserError, match="warm-up takes 50 of 10 steps"):
    learning_rate_schedule(
      dataclasses.replace(EXPERIMENT, schedule=Schedule(train_epochs=1)), train_examples=1000
    )
