"""Ends this process, with one line, when another process of the run has died or is silent.

A process that waits in a collective for a dead one would wait forever. So each process regularly
writes to JAX's key-value store that it is alive, until all have come to their end, and ends when
another one has stopped doing so, or when process 0, which holds the store, does not answer.
Complete checkpoints stay. If process 0 dies, JAX aborts the others first (`EXIT_ABORTED`, with a
message among stack traces).
"""

import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from train.run.exit_codes import EXIT_LOST_PROCESS
from train.run.leases.held import end_process

SILENT_SECONDS_MAX = 30
"""Seconds of silence after which a process counts as dead."""
SIGN_OF_LIFE_SECONDS = 3
"""Seconds between two signs of life of a process."""
NOTICED_SECONDS_MAX = SILENT_SECONDS_MAX + 4 * SIGN_OF_LIFE_SECONDS
"""Seconds after which the others have certainly ended because a process has died."""
JOINED_SECONDS_MAX = 300
"""Seconds that the processes have to find each other at the start."""

_FAILED = "failed"
"""Last word of a process, which tells the others why it falls silent."""
_FOLDER = "nfnets_alive/"
_SILENCES_MAX = SILENT_SECONDS_MAX // SIGN_OF_LIFE_SECONDS
_NO_ANSWER_OF_PROCESS_0 = "process 0, which coordinates, does not answer"
# The preface of an HTTP/2 connection and a frame of empty settings, which a server answers.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class ProcessWatch:
  """Runs threads that say that this process is alive and listen for the others."""

  def __init__(self):
    self._store = _key_value_store()
    self._own = f"{_FOLDER}{jax.process_index()}"
    self._ended = threading.Event()
    self._has_failed = False
    self._answers = 0
    self._thread = threading.Thread(target=self._run, name="other processes", daemon=True)
    self._thread.start()
    threading.Thread(target=self._watch_store, name="process 0", daemon=True).start()

  def shut_down(self) -> None:
    """Waits until all processes have come to their end, and then leaves JAX's processes with them.

    Meanwhile it watches them as before. JAX by itself would wait at exit, and abort if one of them
    does not appear.
    """
    with _ended_by_interrupts():
      try:
        jax.distributed.shutdown()
      except jax.errors.JaxRuntimeError:
        _leave(_NO_ANSWER_OF_PROCESS_0)
    self._ended.set()

  def tell_failure(self) -> None:
    """Ends the watch and tells the others that this process has failed, if process 0 answers."""
    self._has_failed = True
    self._ended.set()
    self._thread.join(2 * SIGN_OF_LIFE_SECONDS)

  def _run(self) -> None:
    # Silences are counted, not timed: if all processes were stopped, none has had the time.
    heard: dict[str, tuple[str, int]] = {}
    count = 0
    while not self._ended.wait(SIGN_OF_LIFE_SECONDS if count else 0):
      count += 1
      try:
        self._store.key_value_set(self._own, str(count), allow_overwrite=True)
        words = self._store.key_value_dir_get(_FOLDER)
      except jax.errors.JaxRuntimeError:
        # While all leave together, process 0 and its store may be gone a moment earlier.
        if not self._ended.wait(2 * SIGN_OF_LIFE_SECONDS):
          _leave(_NO_ANSWER_OF_PROCESS_0)
        return
      self._answers += 1
      for name, word in words:
        before, silences = heard.get(name, ("", 0))
        silences = silences + 1 if word == before else 0
        heard[name] = word, silences
        index = name.removeprefix(_FOLDER)
        if word == _FAILED:
          _leave(f"process {index} has failed; its own output says why")
        if silences > _SILENCES_MAX:
          _leave(f"process {index} has been silent for {silences * SIGN_OF_LIFE_SECONDS:.0f} s")
    if self._has_failed:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._store.key_value_set(self._own, _FAILED, allow_overwrite=True)

  def _watch_store(self) -> None:
    """Leaves when the other thread waits for the store, which it does without a limit."""
    answers = silences = 0
    while not self._ended.wait(SIGN_OF_LIFE_SECONDS):
      silences = silences + 1 if self._answers == answers else 0
      answers = self._answers
      if silences > _SILENCES_MAX:
        _leave(_silence_of_process_0())


@contextlib.contextmanager
def start_up_watch(index: int | None) -> Iterator[None]:
  """Ends this process, with one line, if the processes do not find each other.

  Until they have, there is no store. JAX would wait for five minutes and then abort, even if
  process 0 was there and has fallen silent.

  Args:
    index: index of this process, if it is known; process 0 does not watch itself.
  """
  joined = threading.Event()
  threading.Thread(target=_watch_start_up, args=(index, joined), daemon=True).start()
  try:
    with _ended_by_interrupts():
      yield
  finally:
    joined.set()


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
  """Lets Ctrl-C end this process while JAX waits for the others and there is nothing to save.

  JAX waits in C, where Python cannot raise KeyboardInterrupt.
  """
  previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, previous)


def _watch_start_up(index: int | None, joined: threading.Event) -> None:
  who = "this process" if index is None else f"process {index}"
  end_seconds = time.monotonic() + JOINED_SECONDS_MAX
  silences, was_there = 0, False
  while not joined.wait(SIGN_OF_LIFE_SECONDS):
    if time.monotonic() > end_seconds:
      _leave(f"not all processes have appeared within {JOINED_SECONDS_MAX} s", who=who)
    if index == 0 or (address := _coordinator_address()) is None:
      continue
    answer = _greet(address)
    was_there |= answer is not None
    # Before it was there for the first time, it is waited for.
    silences = silences + 1 if was_there and not answer else 0
    if silences * SIGN_OF_LIFE_SECONDS * 2 > SILENT_SECONDS_MAX and not joined.is_set():
      _leave(_silence_of_process_0(), who=who)


def _greet(address: str) -> bool | None:
  """Tells whether the server at HOST:PORT answers; None if there is no server.

  The kernel accepts connections for a process that is stopped, so that one has to be used to learn
  anything.
  """
  host, _, port = address.rpartition(":")
  try:
    connection = socket.create_connection((host.strip("[]"), int(port)), SIGN_OF_LIFE_SECONDS)
  except TimeoutError:
    return False
  except OSError:
    return None
  try:
    with connection:
      connection.sendall(_HTTP2_GREETING)
      return bool(connection.recv(1))
  except OSError:
    return False


def _silence_of_process_0() -> str:
  return f"process 0, which coordinates, has been silent for {SILENT_SECONDS_MAX} s"


def _key_value_store() -> Any:
  """Returns the client of JAX's key-value store, which has no public name; read in jax 0.10.2."""
  return jax._src.distributed.global_state.client


def _coordinator_address() -> str | None:
  """Returns the address of process 0 once JAX knows it; no public name; read in jax 0.10.2."""
  return jax._src.distributed.global_state.coordinator_address


def _leave(reason: str, *, who: str | None = None) -> NoReturn:
  """Ends this process without the exit handlers, which would wait for the others.

  Args:
    reason: what has become of the other process.
    who: what this process is called before it knows its index.
  """
  holds_store = who is None and jax.process_index() == 0
  who = who or f"process {jax.process_index()} of {jax.process_count()}"
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  with contextlib.suppress(OSError, ValueError):
    print(
      f"error: {who} has lost another one: {reason}; start all of them again, they resume from the "
      "newest checkpoint",
      file=sys.stderr,
      flush=True,
    )
  if holds_store:
    # The others notice the same a moment later, unless JAX aborts them because the store is gone.
    time.sleep(2 * SIGN_OF_LIFE_SECONDS)
  end_process(EXIT_LOST_PROCESS)
