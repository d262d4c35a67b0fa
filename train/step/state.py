"""What a training step changes."""

import dataclasses
from typing import Any

import jax

from train.step.optimizer import SGDAGCState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Parameters, optimizer and moving average after a number of steps.

  Attributes:
    parameters: nested dictionaries, float32.
    optimizer: holds the number of steps done and the momentum buffers.
    ema: moving average like `parameters`, or None.
  """

  parameters: Any
  optimizer: SGDAGCState
  ema: Any | None
