"""Finds the trials of dead workers, which another worker then takes over by claiming them.

An entry that has not been touched for a long time belongs to a dead worker. The time is measured by
the clock of the watching worker, so the clocks of machines need not agree.
"""

import pathlib
import time
from collections.abc import Callable, Mapping

from train.sweep.folder import RUNNING, Entry


class DeadWorkerWatch:
  """Notices workers that have died, by this process's own clock."""

  def __init__(self, silent_seconds_max: float, *, clock: Callable[[], float] = time.monotonic):
    """Prepares the watch without looking at any entry.

    Args:
      silent_seconds_max: time without a sign of life after which a worker counts as dead.
      clock: function that returns the current time in seconds.
    """
    self._silent_seconds_max = silent_seconds_max
    self._clock = clock
    self._seen: dict[pathlib.Path, tuple[int, float]] = {}

  def abandoned(self, entries: Mapping[str, Entry]) -> list[Entry]:
    """Returns the running entries that have not been touched for too long.

    Args:
      entries: all entries as they are now; what earlier calls saw of them is remembered.
    """
    now_seconds = self._clock()
    seen, abandoned = {}, []
    for entry in entries.values():
      if entry.state != RUNNING:
        continue
      try:
        touched_ns = entry.path.stat().st_mtime_ns
      except OSError:
        continue
      before = self._seen.get(entry.path)
      since_seconds = before[1] if before and before[0] == touched_ns else now_seconds
      seen[entry.path] = touched_ns, since_seconds
      if now_seconds - since_seconds > self._silent_seconds_max:
        abandoned.append(entry)
    self._seen = seen
    return abandoned
