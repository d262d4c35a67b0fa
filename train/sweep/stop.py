"""SIGTERM and Ctrl-C for a worker, which then gives its trial back.

`train.run.termination` does this for a training run. A worker needs its own listener, because it
must not ask JAX how many processes there are: that would take the devices from the training runs
that it starts.
"""

import signal
import time
from types import FrameType
from typing import Any

from train.run.termination import Terminated


class Stop:
  """Listens for SIGTERM and Ctrl-C; to be used as a context manager in the main thread."""

  def __init__(self):
    self._requested: int | None = None
    self._previous: dict[int, Any] = {}

  def is_requested(self) -> bool:
    """Returns whether a signal has come."""
    return self._requested is not None

  def wait(self, seconds: float) -> None:
    """Sleeps until the time is over or a signal comes."""
    # Waiting for a threading.Event that a handler in the same thread sets can last forever.
    end_seconds = time.monotonic() + seconds
    while not self.is_requested() and time.monotonic() < end_seconds:
      time.sleep(min(0.1, seconds))

  def raise_if_requested(self) -> None:
    """Ends the process as the signal asks.

    Raises:
      Terminated: after SIGTERM.
      KeyboardInterrupt: after Ctrl-C.
    """
    if self.is_requested():
      raise KeyboardInterrupt if self._requested == signal.SIGINT else Terminated

  def __enter__(self) -> "Stop":
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._request)
    return self

  def __exit__(self, *unused_exception) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _request(self, number: int, unused_frame: FrameType | None) -> None:
    """Handles a signal."""
    self._requested = number
    # A second Ctrl-C ends the worker at once, without waiting for a checkpoint.
    signal.signal(signal.SIGINT, signal.default_int_handler)
