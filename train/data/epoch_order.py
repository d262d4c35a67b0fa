"""The order in which training examples come, which nothing but the seed decides.

The order is a function of (seed, epoch, position): it does not depend on the number of hosts or
workers, and every record comes exactly once in an epoch. With `repetitions`, every record comes
that many times in a row, and an epoch is that many times longer.
"""

import hashlib

import grain
import numpy as np

from train.data.manifest import Split


def example_order(examples: int, seed: int, repetitions: int) -> grain.MapDataset:
  """Returns the indices of the records, epoch after epoch, each shuffled differently.

  Args:
    examples: number of records of the split.
    seed: seed of the run, >= 0.
    repetitions: number of times that each index comes in a row.
  """
  # Grain shuffles epoch e with (seed + e): unmixed, a run with seed + 1 would be this one shifted.
  (shuffle_seed,) = np.random.SeedSequence(seed).generate_state(1)
  once = grain.MapDataset.range(examples).shuffle(seed=int(shuffle_seed)).repeat()
  # A mix of equal data sets takes from each in turn.
  return once if repetitions == 1 else grain.MapDataset.mix([once] * repetitions)


def epoch_and_repetition(position: int, examples: int, repetitions: int) -> tuple[int, int]:
  """Returns the epoch that a position belongs to, and how often its record came in it before.

  Args:
    position: position in the order, counted over all epochs.
    examples: number of records of the split.
    repetitions: number of times that each index comes in a row.
  """
  return position // (examples * repetitions), position % repetitions


def order_sha256(split: Split, seed: int | None) -> str:
  """Returns a digest that differs where a saved position would mean another example.

  Args:
    split: split that the examples come from.
    seed: seed of the run; None is for the order of the records themselves.
  """
  digest = hashlib.sha256(f"{seed}".encode())
  for record_file in split.record_files:
    digest.update(record_file.sha256.encode())
  return digest.hexdigest()
