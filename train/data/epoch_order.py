"""The order of the training examples, which depends only on the seed.

The order is a function of (seed, epoch, position): it does not depend on the number of hosts or
workers, and an epoch uses every record exactly once. With `repetitions`, it uses every record that
many times in a row, and is that many times longer.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from train.data.manifest import Split

if TYPE_CHECKING:
  import grain


def example_order(examples: int, seed: int, repetitions: int) -> "grain.MapDataset":
  """Returns the indices of the records, epoch after epoch, each shuffled differently.

  Args:
    examples: number of records of the split.
    seed: seed of the run, >= 0.
    repetitions: number of times in a row that each index is returned.
  """
  # Grain imports JAX, which data workers do without: they are told the order.
  import grain

  # Grain shuffles epoch e with seed + e, so with unhashed seeds, epoch e of a run with seed + 1
  # would have the order of epoch e + 1 of this run.
  (shuffle_seed,) = np.random.SeedSequence(seed).generate_state(1)
  once = grain.MapDataset.range(examples).shuffle(seed=int(shuffle_seed)).repeat()
  # A mix takes one element from each data set in turn, so equal data sets repeat each index.
  return once if repetitions == 1 else grain.MapDataset.mix([once] * repetitions)


def epoch_and_repetition(position: int, examples: int, repetitions: int) -> tuple[int, int]:
  """Returns the epoch of a position, and how often that epoch has used its record before.

  Args:
    position: position in the order, counted over all epochs.
    examples: number of records of the split.
    repetitions: number of times in a row that each index is returned.
  """
  return position // (examples * repetitions), position % repetitions


def order_sha256(split: Split, seed: int | None) -> str:
  """Returns a digest that differs whenever a saved position would mean another example.

  Args:
    split: split that the examples come from.
    seed: seed of the run; None stands for the order of the stored records.
  """
  digest = hashlib.sha256(f"{seed}".encode())
  for record_file in split.record_files:
    digest.update(record_file.sha256.encode())
  return digest.hexdigest()
