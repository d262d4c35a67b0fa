"""Saves a checkpoint as a run does, of given parameters and without training."""

import numpy as np

from train.run.checkpoints.manager import Checkpoints


def save_checkpoint(workdir, parameters, *, ema=None, **metadata):
  """Saves the checkpoint of step 1; the optimizer's state in it is of no use."""
  with Checkpoints(str(workdir), keep=1) as checkpoints:
    checkpoints.save(
      1,
      parameters=parameters,
      ema=ema,
      optimizer={"momentum": np.zeros(3, np.float32)},
      data_state={},
      metadata=metadata,
    )
