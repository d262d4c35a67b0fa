"""Ends this process, with one line, when another process of the run has died.

A process that waits in a collective for a dead one would wait forever. So each process regularly
writes to JAX's key-value store that it is alive, and ends when another one has stopped doing so.
Complete checkpoints stay. If process 0 dies, which holds the store, JAX aborts the others first
(`EXIT_ABORTED`, with a message among stack traces).
"""

import contextlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from train.run.exit_codes import EXIT_LOST_PROCESS

SILENT_SECONDS_MAX = 30
"""Seconds of silence after which a process counts as dead."""
SIGN_OF_LIFE_SECONDS = 3
"""Seconds between two signs of life of a process."""
NOTICED_SECONDS_MAX = SILENT_SECONDS_MAX + 2 * SIGN_OF_LIFE_SECONDS
"""Seconds after which the others have certainly noticed that a process has died."""
FINISHED, FAILED = "finished", "failed"
"""Last words of a process, which tell the others why it falls silent."""

_FOLDER = "nfnets_alive/"


class ProcessWatch:
  """Runs a thread that says that this process is alive and listens for the others."""

  def __init__(self):
    self._store = _key_value_store()
    self._own = f"{_FOLDER}{jax.process_index()}"
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._run, name="other processes", daemon=True)
    self._thread.start()

  def stop(self, last_word: str) -> None:
    """Ends the thread and tells the others why.

    Args:
      last_word: `FINISHED` or `FAILED`.
    """
    self._stopped.set()
    self._thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._store.key_value_set(self._own, last_word, allow_overwrite=True)

  def _run(self) -> None:
    heard: dict[str, tuple[str, float]] = {}
    count = 0
    while not self._stopped.wait(SIGN_OF_LIFE_SECONDS if count else 0):
      count += 1
      try:
        self._store.key_value_set(self._own, str(count), allow_overwrite=True)
        words = self._store.key_value_dir_get(_FOLDER)
      except jax.errors.JaxRuntimeError:
        if not self._stopped.is_set():
          _leave("process 0, which coordinates, does not answer")
        return
      now_seconds = time.monotonic()
      for name, word in words:
        if heard.get(name, ("", 0.0))[0] != word:
          heard[name] = word, now_seconds
        index = name.removeprefix(_FOLDER)
        if word == FAILED:
          _leave(f"process {index} has failed; its own output says why")
        silent_seconds = now_seconds - heard[name][1]
        if word != FINISHED and silent_seconds > SILENT_SECONDS_MAX:
          _leave(f"process {index} has been silent for {silent_seconds:.0f} s")


def _key_value_store() -> Any:
  """Returns the client of JAX's key-value store, which has no public name; read in jax 0.10.2."""
  return jax._src.distributed.global_state.client


def _leave(reason: str) -> NoReturn:
  """Ends this process without the exit handlers, which would wait for the others."""
  sys.stdout.flush()
  print(
    f"error: process {jax.process_index()} of {jax.process_count()} has lost another one: "
    f"{reason}; start all of them again, they resume from the newest checkpoint",
    file=sys.stderr,
    flush=True,
  )
  os._exit(EXIT_LOST_PROCESS)
