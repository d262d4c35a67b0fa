"""Trials that are never trained, and functions that are called at the same time."""

import concurrent.futures
import threading

from train.sweep.trial import Trial, trial_name

FIXED = {"config": "a.py", "overrides": ["--config.seed=1"]}


def make_trial(learning_rate=0.1, *, variant="P0", epochs=0.5, steps=10):
  return Trial(
    name=trial_name(variant, epochs, learning_rate),
    variant=variant,
    epochs=epochs,
    learning_rate=learning_rate,
    parameters=1000,
    steps=steps,
    images=16 * steps,
    compute_flops=10**9,
  )


def state(folder, trial):
  return folder.entries()[trial.name].state


def together(count, function):
  """Returns the results of `count` threads that call a function at the same time."""
  barrier = threading.Barrier(count)

  def call(i):
    barrier.wait()
    return function(i)

  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return list(pool.map(call, range(count)))
