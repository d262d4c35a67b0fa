"""The length of a run, and its learning rate as a function of the step."""

import math

import jax.numpy as jnp
import optax

from nfnet.errors import UserError
from train.config.experiment import Experiment


def train_steps(experiment: Experiment, train_examples: int) -> int:
  """Returns the number of steps of the whole run; at least one.

  Args:
    experiment: experiment, whose length is given in epochs or in steps.
    train_examples: number of images in the training split.
  """
  schedule = experiment.schedule
  if schedule.train_steps is not None:
    return schedule.train_steps
  return max(1, round(schedule.train_epochs * train_examples / experiment.data.batch_size))


def warmup_steps(experiment: Experiment, train_examples: int) -> int:
  """Returns the number of steps over which the learning rate rises from 0.

  Args:
    experiment: experiment, whose warm-up is given in epochs or in steps.
    train_examples: number of images in the training split.
  """
  optimizer = experiment.optimizer
  if optimizer.warmup_steps is not None:
    return optimizer.warmup_steps
  return math.ceil(optimizer.warmup_epochs * train_examples / experiment.data.batch_size)


def learning_rate_schedule(experiment: Experiment, train_examples: int) -> optax.Schedule:
  """Returns the learning rate as a function of the number of steps done before.

  It warms up linearly from 0 to the peak, then follows a cosine to 0 at the end (paper B,
  appendix A).

  Args:
    experiment: experiment with the peak and the lengths of the warm-up and the run.
    train_examples: number of images in the training split.

  Raises:
    UserError: the warm-up leaves no step for the cosine.
  """
  total = train_steps(experiment, train_examples)
  warmup = warmup_steps(experiment, train_examples)
  if warmup >= total:
    raise UserError(
      f"the warm-up takes {warmup} of {total} steps and leaves none for the decay; "
      "lower optimizer.warmup_steps or optimizer.warmup_epochs, or train for longer"
    )
  schedule = optax.schedules.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=experiment.optimizer.peak_learning_rate,
    warmup_steps=warmup,
    decay_steps=total,
    end_value=0.0,
  )
  # A float32 step counts exactly to 2^24; optax mixes dtypes when given an integer.
  return lambda step: schedule(jnp.asarray(step, jnp.float32))
