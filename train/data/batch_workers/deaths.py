"""Counts data workers that were killed, and says when there are too many to go on."""

import collections
import signal
import sys
import threading
import time
from collections.abc import Callable

from nfnet.errors import UserError

WINDOW_SECONDS = 600
DEATHS_MAX = 10
"""Deaths within `WINDOW_SECONDS` after which replacing workers one by one does not help; three for
each worker, if that is more. A training then ends with a code after which it is started again
(`train.run.exit_codes`): a new start frees all of its memory, and whoever starts it counts."""


class TooManyDeathsError(UserError):
  """The error for data workers that are killed again and again."""


class WorkerDeaths:
  """The deaths of the data workers of one program; may be used by several threads."""

  def __init__(self, workers: int, report: Callable[[str], None] | None = None):
    """Starts to count.

    Args:
      workers: number of worker processes at a time.
      report: called with one sentence for each death; None prints it on stderr.
    """
    self._max = max(DEATHS_MAX, 3 * workers)
    self._report = report or _print
    self._lock = threading.Lock()
    self._seconds: collections.deque[float] = collections.deque()

  def add(self, how: str) -> None:
    """Counts one death, which `too_many` and `are_too_many` then know of.

    Args:
      how: what has happened to the worker, see `describe_end`.

    Raises:
      TooManyDeathsError: twice as many as `are_too_many` asks for have died, so that whoever could
        have ended the program in an orderly way has had the time.
    """
    with self._lock:
      self._seconds.append(time.monotonic())
    self._report(f"a data worker {how}; another one makes the same batches")
    if self._recent() >= 2 * self._max:
      raise TooManyDeathsError(self.too_many())

  def are_too_many(self) -> bool:
    """Returns whether the program should save what it has and end."""
    return self._recent() >= self._max

  def too_many(self) -> str:
    """Returns one sentence for whoever has to do something about it."""
    return (
      f"{self._recent()} data workers were killed within {WINDOW_SECONDS // 60} minutes, perhaps "
      "because memory ran out: set fewer data.workers or give the machine more memory"
    )

  def _recent(self) -> int:
    with self._lock:
      while self._seconds and self._seconds[0] < time.monotonic() - WINDOW_SECONDS:
        self._seconds.popleft()
      return len(self._seconds)


def describe_end(return_code: int | None) -> str:
  """Says how a process ended: "was killed (SIGKILL, perhaps because memory ran out)".

  Args:
    return_code: that of `subprocess.Popen`; negative numbers are signals.
  """
  if return_code is None:
    return "does not end"
  if return_code >= 0:
    return f"ended with code {return_code}"
  try:
    name = signal.Signals(-return_code).name
  except ValueError:
    name = f"signal {-return_code}"
  because = ", perhaps because memory ran out" if -return_code == signal.SIGKILL else ""
  return f"was killed ({name}{because})"


def _print(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)
