"""Sums the metrics of steps: means since the last record, and counts since the run began."""

import collections
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from train.run.faults import StepOutcome, extend_row


@dataclasses.dataclass
class Counts:
  """Counts since the run began; saved with every checkpoint.

  Attributes:
    images: number of images given to all processes.
    bad_images: number of these that could not be decoded and have weight 0.
    skipped_steps: number of steps that changed nothing, see `train.config.experiment.Faults`.
    worker_deaths: number of data workers of the first process that were killed and replaced.
  """

  images: int = 0
  bad_images: int = 0
  skipped_steps: int = 0
  worker_deaths: int = 0


class Tally:
  """Collects the metrics of steps, the newest of which may still be running.

  Attributes:
    counts: counts up to the last settled step.
    skipped_in_a_row: skipped steps up to and including the last settled step, with no other step
      between them.
  """

  def __init__(self, batch_size: int, counts: Counts):
    """Starts the clock.

    Args:
      batch_size: number of images per step over all processes.
      counts: counts of the steps so far; updated in place.
    """
    self.counts = counts
    self.skipped_in_a_row: tuple[StepOutcome, ...] = ()
    self._batch_size = batch_size
    self._pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
    self._window: list[dict[str, float]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Excludes the time until now, which was spent neither on steps nor on waiting for data."""
    self._started_seconds = time.monotonic()
    self._waited_seconds = 0.0

  def waited(self, seconds: float) -> None:
    """Adds seconds to the time spent waiting for data."""
    self._waited_seconds += seconds

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Adds a step that was just started.

    Args:
      step: number of the step.
      metrics: arrays that the training step returned for it, possibly not computed yet.
    """
    self._pending.append((step, metrics))

  def settle(self, *, running_max: int) -> Iterator[StepOutcome]:
    """Waits until at most `running_max` steps still run, and yields how the others ended.

    Each outcome is yielded before the next step is looked at. The images of a started step occupy
    the devices until it has run, so only a few steps may be running.
    """
    while len(self._pending) > running_max:
      step, metrics = self._pending.popleft()
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      self._window.append(values)
      self.counts.images += self._batch_size
      self.counts.bad_images += self._batch_size - round(values["examples"])
      outcome = StepOutcome(step, values["loss"], bool(values["skipped"]), values["gradient_norm"])
      self.counts.skipped_steps += outcome.is_skipped
      self.skipped_in_a_row = extend_row(self.skipped_in_a_row, outcome)
      yield outcome

  def close_window(self) -> dict[str, float]:
    """Returns the record of the steps settled since the last call.

    Means are taken over the steps that were not skipped.
    """
    seconds = time.monotonic() - self._started_seconds
    good = [step for step in self._window if not step["skipped"]]
    examples = sum(step["examples"] for step in self._window)
    means = {
      name: float(np.mean([step[name] for step in good])) if good else float("nan")
      for name in ("loss", "top1", "gradient_norm")
    }
    rates = [step["learning_rate"] for step in self._window]
    record = {
      **means,
      "learning_rate": rates[-1] if rates else float("nan"),
      "images_per_second": examples / seconds,
      "data_wait_share": self._waited_seconds / seconds,
      "bad_images": self.counts.bad_images,
      "skipped_steps": self.counts.skipped_steps,
      "worker_deaths": self.counts.worker_deaths,
    }
    self._window = []
    self.restart_clock()
    return record
