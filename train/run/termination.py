"""Handles SIGTERM, the notice that a machine is about to be taken away.

The run saves a checkpoint at its current step and ends with `EXIT_TERMINATED`; the same command
resumes from there.
"""

import signal
import threading

import jax
from jax.experimental import multihost_utils

from train.run.exit_codes import EXIT_TERMINATED


class Terminated(SystemExit):
  """Ends the process, once everything is saved, with `EXIT_TERMINATED`."""

  def __init__(self):
    super().__init__(EXIT_TERMINATED)


class Termination:
  """Listens for the signal. Use as a context manager, in the main thread.

  Several processes get the signal at different times, or only one of them gets it. JAX makes them
  agree on a common point of the run at which all of them stop.
  """

  def __init__(self):
    self._is_alone = jax.process_count() == 1
    self._requested = threading.Event()
    self._points = 0
    self._previous = None

  def __enter__(self) -> "Termination":
    # With several processes, JAX has its own handler, which must not be replaced.
    if self._is_alone and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, lambda *unused: self._requested.set())
    return self

  def __exit__(self, *unused_exception) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

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
