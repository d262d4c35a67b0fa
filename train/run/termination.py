"""Handles the signals that tell a run to end: SIGTERM and Ctrl-C. SIGHUP is ignored.

The run saves a checkpoint at its current step and ends with `EXIT_TERMINATED` or, after Ctrl-C,
`EXIT_INTERRUPTED`; the same command resumes from there. A second Ctrl-C ends it at once. A run
whose terminal is closed goes on.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from train.run.exit_codes import EXIT_INTERRUPTED, EXIT_TERMINATED
from train.run.leases.held import end_process

_SAME_PRESS_SECONDS = 0.5
"""Programs that start others, such as make and srun, pass on a Ctrl-C that has reached them too."""
_START_UP_ENDS_SECONDS = 5
"""Time for an orderly end before there is anything to save, for example while a step compiles."""


class Terminated(SystemExit):
  """Ends the process, once everything is saved, with an exit code that is not final."""

  def __init__(self, code: int = EXIT_TERMINATED):
    super().__init__(code)


class Termination:
  """Listens for the signals. Use as a context manager, in the main thread.

  Several processes get a signal at different times, or only one of them gets it. JAX makes them
  agree on a common point of the run at which all of them stop.

  Attributes:
    code: exit code of the process, once it was asked to end.
    reason: why this program has asked itself to end; empty if a signal has.
  """

  def __init__(self):
    self.code = EXIT_TERMINATED
    self.reason = ""
    self._is_alone = jax.process_count() == 1
    self._requested = threading.Event()
    self._left = threading.Event()
    self._has_unsaved_steps = False
    self._points = 0
    self._interrupted_seconds: float | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "Termination":
    if threading.current_thread() is not threading.main_thread():
      return self
    # Python runs handlers in the main thread, after whatever that is doing in C: a compilation may
    # take half an hour. But it writes each signal to this pipe at once, for a thread of ours.
    self._read_end, self._write_end = os.pipe()
    os.set_blocking(self._write_end, False)
    self._previous_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
    threading.Thread(target=self._listen, name="signals", daemon=True).start()
    self._handle(signal.SIGHUP, signal.SIG_IGN)
    self._handle(signal.SIGINT, _do_nothing)
    # With several processes, JAX has its own handler, which must not be replaced.
    if self._is_alone:
      self._handle(signal.SIGTERM, _do_nothing)
    return self

  def __exit__(self, *unused_exception) -> None:
    self._left.set()
    if not self._previous:
      return
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._previous_wakeup)
    # Ends the thread, which closes the other end.
    os.close(self._write_end)

  def is_due(self) -> bool:
    """Returns whether to stop here.

    All processes must call it at the same points of the run.
    """
    if self._is_alone:
      return self._requested.is_set()
    self._points += 1
    return multihost_utils.reached_preemption_sync_point(self._points)

  def is_due_alone(self) -> bool:
    """Returns whether to stop at once, outside the common points, which only a lone process can."""
    return self._is_alone and self._requested.is_set()

  def request(self, code: int, reason: str = "") -> None:
    """Asks this process, and with it all others, to save and end; the first call counts.

    Args:
      code: exit code of this process.
      reason: why, if not because of a signal.
    """
    if self._requested.is_set():
      return
    self.code, self.reason = code, reason
    self._requested.set()
    if not self._is_alone:
      # JAX's handler tells the others.
      os.kill(os.getpid(), signal.SIGTERM)

  def begin_steps(self) -> None:
    """Tells that from now on an end without a checkpoint would lose steps."""
    self._has_unsaved_steps = True

  def _handle(self, number: int, handler: Any) -> None:
    self._previous[number] = signal.signal(number, handler)

  def _listen(self) -> None:
    """Acts on signals as they come, until the pipe is closed."""
    with open(self._read_end, "rb", buffering=0) as pipe:
      while numbers := pipe.read(64):
        for number in numbers:
          if number == signal.SIGTERM and self._is_alone:
            self._end_soon(EXIT_TERMINATED)
          elif number == signal.SIGINT:
            self._interrupt()

  def _interrupt(self) -> None:
    now_seconds = time.monotonic()
    if self._interrupted_seconds is None:
      self._interrupted_seconds = now_seconds
      self._end_soon(EXIT_INTERRUPTED)
    elif now_seconds > self._interrupted_seconds + _SAME_PRESS_SECONDS:
      # The data workers leave when this process does.
      end_process(EXIT_INTERRUPTED)

  def _end_soon(self, code: int) -> None:
    self.request(code)
    if self._is_alone and not self._has_unsaved_steps:
      threading.Thread(target=self._end_start_up, args=(code,), daemon=True).start()

  def _end_start_up(self, code: int) -> None:
    """Ends the process if its main thread does not, as long as no step is lost by that."""
    if self._left.wait(_START_UP_ENDS_SECONDS) or self._has_unsaved_steps:
      return
    verb = "interrupted" if code == EXIT_INTERRUPTED else "terminated"
    print(f"{verb} before the first step since the start", file=sys.stderr, flush=True)
    end_process(code)


def _do_nothing(*unused) -> None:
  """Handles a signal in the main thread; `Termination` has a thread for the work."""
