"""What the steps amount to: means since the last record, and counts since the run began."""

import collections
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass
class Counts:
  """Since the run began; saved with every checkpoint.

  Attributes:
    images: of all processes.
    bad_images: of these, those that could not be decoded and weigh nothing.
    skipped_steps: that changed nothing, see `train.config.experiment.Faults`.
  """

  images: int = 0
  bad_images: int = 0
  skipped_steps: int = 0


@dataclasses.dataclass(frozen=True)
class BadStep:
  """A step and what was wrong with it.

  Attributes:
    step: which.
    loss: of its batch.
    is_skipped: it changed nothing. Otherwise its gradient, and with it the state, is not finite.
  """

  step: int
  loss: float
  is_skipped: bool


class Tally:
  """Metrics of steps, of which the last ones may still be running."""

  def __init__(self, batch_size: int, counts: Counts):
    """Begins.

    Args:
      batch_size: of all processes.
      counts: of the steps before; changed here.
    """
    self.counts = counts
    self.skipped_in_a_row: list[BadStep] = []
    self._batch_size = batch_size
    self._pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
    self._window: list[dict[str, float]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves out what was neither a step nor waiting for data."""
    self._started_seconds = time.monotonic()
    self._waited_seconds = 0.0

  def waited(self, seconds: float) -> None:
    """For data."""
    self._waited_seconds += seconds

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Of a step, as `train.step.train_step` gives them."""
    self._pending.append((step, metrics))

  def settle(self, *, running_max: int) -> Iterator[BadStep]:
    """Waits until at most so many steps are still running, and yields the bad ones of the others.

    Each is yielded before the next one is looked at.

    Images wait on the devices for steps that have been started, so there must not be many.
    """
    while len(self._pending) > running_max:
      step, metrics = self._pending.popleft()
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      self._window.append(values)
      self.counts.images += self._batch_size
      self.counts.bad_images += self._batch_size - round(values["examples"])
      if values["skipped"]:
        self.counts.skipped_steps += 1
        self.skipped_in_a_row.append(BadStep(step, values["loss"], is_skipped=True))
        yield self.skipped_in_a_row[-1]
        continue
      self.skipped_in_a_row = []
      if not math.isfinite(values["gradient_norm"]):
        yield BadStep(step, values["loss"], is_skipped=False)

  def close_window(self) -> dict[str, float]:
    """The record of the settled steps since the last one; means are of those not skipped."""
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
    }
    self._window = []
    self.restart_clock()
    return record
