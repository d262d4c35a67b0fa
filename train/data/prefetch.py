"""Fetches the next batch while the devices work on the present one.

`train.data.batches` has more batches made in advance besides.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from train.data.batches import Batches

_POLL_SECONDS = 0.1
_SECONDS_TO_END = 1.0


class Fetched(NamedTuple):
  """A batch, and the state of the iterator after it."""

  batch: dict[str, np.ndarray]
  state_after: dict[str, Any]


class BatchFetcher:
  """A thread that fetches one batch ahead. Use as a context manager.

  A caller that waits for a batch can always be interrupted, even if a read never returns.
  """

  def __init__(self, batches: Batches):
    self._batches = batches
    self._queue: queue.Queue[Fetched | BaseException] = queue.Queue(maxsize=1)
    self._closed = threading.Event()
    # A daemon, because a read that never returns must not keep the process alive.
    self._thread = threading.Thread(target=self._run, name="batch fetcher", daemon=True)
    self._thread.start()

  def next(self, is_interrupted: Callable[[], bool]) -> Fetched | None:
    """Returns the next batch, or None if `is_interrupted` returns True before there is one.

    Raises whatever the iterator has raised.
    """
    while not is_interrupted():
      try:
        item = self._queue.get(timeout=_POLL_SECONDS)
      except queue.Empty:
        continue
      if isinstance(item, BaseException):
        raise item
      return item
    return None

  def close(self) -> None:
    """Ends the thread and drops what it has fetched in advance."""
    self._closed.set()
    self._thread.join(_SECONDS_TO_END)

  def __enter__(self) -> "BatchFetcher":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def _run(self) -> None:
    item: Fetched | BaseException | None = None
    while not self._closed.is_set() and not isinstance(item, BaseException):
      try:
        item = Fetched(next(self._batches), self._batches.get_state())
      # Handed over, so that `next` raises it in the caller's thread.
      except BaseException as error:
        item = error
      self._put(item)

  def _put(self, item: Fetched | BaseException) -> None:
    while not self._closed.is_set():
      try:
        self._queue.put(item, timeout=_POLL_SECONDS)
      except queue.Full:
        continue
      return
