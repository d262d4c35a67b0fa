"""Runs as arrays that laws are fitted to, and the compute-loss frontier among them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.scaling.run_table import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
  """Runs as arrays with one entry for each run.

  Attributes:
    names: [n] names of the networks.
    parameters: [n] numbers of trained scalars.
    epochs: [n] passes over the training data.
    compute: [n] training compute, in any unit.
    loss: [n] held-out losses in nats.
  """

  names: np.ndarray
  parameters: np.ndarray
  epochs: np.ndarray
  compute: np.ndarray
  loss: np.ndarray

  def __len__(self) -> int:
    return len(self.loss)

  def take(self, rows: np.ndarray) -> "Points":
    """Returns some of the runs.

    Args:
      rows: indices, which may repeat, or a mask.
    """
    fields = dataclasses.fields(self)
    return Points(**{field.name: getattr(self, field.name)[rows] for field in fields})


def as_points(runs: Sequence[Run]) -> Points:
  """Returns runs that have a loss as arrays."""
  return Points(
    names=np.array([run.name for run in runs], dtype=str),
    parameters=np.array([run.parameters for run in runs], dtype=float),
    epochs=np.array([run.epochs for run in runs], dtype=float),
    compute=np.array([run.compute for run in runs], dtype=float),
    loss=np.array([run.loss_nats for run in runs], dtype=float),
  )


def frontier(compute: np.ndarray, loss: np.ndarray) -> np.ndarray:
  """Returns a mask of the runs that no other run dominates.

  A run dominates another if it costs no more, is no worse, and is better in one of the two.

  Args:
    compute: [n] training compute.
    loss: [n] losses.

  Returns:
    [n] booleans; equal runs are either all on the frontier or all off it.
  """
  amounts, index = np.unique(compute, return_inverse=True)
  # The lowest loss of each amount of compute, and of all smaller ones.
  best = np.full(len(amounts), np.inf)
  np.minimum.at(best, index, loss)
  cheaper = np.concatenate([[np.inf], np.minimum.accumulate(best)[:-1]])
  return (loss == best[index]) & (loss < cheaper[index])
