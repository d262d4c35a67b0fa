"""SIGTERM: the notice that a machine is about to be taken away.

The run saves a checkpoint of the step that it is at and ends with `EXIT_TERMINATED`; the same
command goes on from there.
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_TERMINATED = 143
"""Exit code after SIGTERM (128 + 15, as of a shell): no step is lost, start again."""


class Terminated(SystemExit):
  """Raised when everything is saved. Ends the process with `EXIT_TERMINATED`."""

  def __init__(self):
    super().__init__(EXIT_TERMINATED)


class Termination:
  """Listens for the signal. Use as a context manager, in the main thread.

  Several processes get the signal at different times, or only one of them does. JAX then lets them
  agree at which of their common points all of them stop.
  """

  def __init__(self):
    self._is_alone = jax.process_count() == 1
    self._requested = threading.Event()
    self._points = 0
    self._previous = None

  def __enter__(self) -> "Termination":
    # With several processes, JAX has a handler of its own.
    if self._is_alone and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, lambda *unused: self._requested.set())
    return self

  def __exit__(self, *unused_exception) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def is_due(self) -> bool:
    """Whether to stop here; to be called at the same points of the run in all processes."""
    if self._is_alone:
      return self._requested.is_set()
    self._points += 1
    return multihost_utils.reached_preemption_sync_point(self._points)

  def is_due_alone(self) -> bool:
    """Whether to stop at once, where the processes have no common point: only one process can."""
    return self._is_alone and self._requested.is_set()
