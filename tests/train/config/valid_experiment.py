"""A small valid experiment, from which tests make others."""

import dataclasses

from train.config.experiment import Data, Experiment, Optimizer, Schedule

VALID = Experiment(
  name="valid",
  data=Data(batch_size=64),
  optimizer=Optimizer(warmup_steps=10),
  schedule=Schedule(train_steps=100),
)


def replaced(**sections):
  """Returns `VALID` with fields replaced: a dict for each section, or a value."""
  return dataclasses.replace(
    VALID,
    **{
      name: dataclasses.replace(getattr(VALID, name), **value) if isinstance(value, dict) else value
      for name, value in sections.items()
    },
  )
