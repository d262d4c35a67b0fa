"""Heartbeats: a process touches a file regularly, so that processes elsewhere know it is alive.

It works on every shared file system, because only the time of the file's last change is looked at.
"""

import os
import pathlib
import threading
import time

HEARTBEAT_SECONDS = 2.0
"""Time between two signs of life. NFS clients may see them a minute late."""


class Heartbeat:
  """Touches a file from a thread, as a context manager."""

  def __init__(self, path: pathlib.Path, *, interval_seconds: float = HEARTBEAT_SECONDS):
    """Prepares the thread without touching the file, whose last change counts as a sign of life.

    Args:
      path: file to touch; it is never created.
      interval_seconds: time between two signs of life.
    """
    self._path = path
    self._interval_seconds = interval_seconds
    self._is_gone = threading.Event()
    self._stopped = threading.Event()
    self._last_seconds = time.monotonic()
    self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

  def is_gone(self) -> bool:
    """Returns whether the file was found missing."""
    return self._is_gone.is_set()

  def silent_seconds(self) -> float:
    """Returns the time since the last sign of life that succeeded."""
    return time.monotonic() - self._last_seconds

  def __enter__(self) -> "Heartbeat":
    self._thread.start()
    return self

  def __exit__(self, *unused_exception) -> None:
    self._stopped.set()
    self._thread.join()

  def _beat(self) -> None:
    while not self._stopped.wait(self._interval_seconds):
      try:
        os.utime(self._path)
        self._last_seconds = time.monotonic()
      except FileNotFoundError:
        self._is_gone.set()
      except OSError:
        # The shared folder may answer again later.
        continue
