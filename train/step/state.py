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
    average: moving average like `parameters`, or None.
  """

  parameters: Any
  optimizer: SGDAGCState
  average: Any | None

  @property
  def evaluated(self) -> Any:
    """The parameters to evaluate: the moving average where one is kept."""
    return self.parameters if self.average is None else self.average
