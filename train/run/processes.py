"""The processes of one run: one for each host of a slice, or several on one machine.

All run the same command. On a TPU slice, `--multi_host` asks the environment (Cloud TPU, GKE) who
they are; elsewhere they are told:

    python -m train.pretrain ... --coordinator=HOST:PORT --process_count=4 --process_index=0

where HOST is that of process 0. The first process writes metrics, plots and the progress line.

A process that waits for another one in a collective waits for ever. So each shows in JAX's
key-value store that it is alive, and ends when another one has stopped doing so.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
from absl import flags

from nfnet.command_line import report_error
from nfnet.errors import UserError
from train.run.termination import Terminated

EXIT_LOST_PROCESS = 75
"""Exit code when another process is gone or absent: start all of them again (EX_TEMPFAIL of
sysexits.h)."""
SILENT_SECONDS_MAX = 30
"""After which a silent process counts as gone."""
_SIGN_OF_LIFE_SECONDS = 3
_NOTICED_SECONDS_MAX = SILENT_SECONDS_MAX + 2 * _SIGN_OF_LIFE_SECONDS
_JAX_HEARTBEAT_SECONDS = 100
"""JAX ends all processes too when one is silent, with stack traces: from half of this time on, so
later than we do."""
_JAX_SHUTDOWN_SECONDS = 50
_FOLDER = "nfnets_alive/"
_FINISHED, _FAILED = "finished", "failed"

_MULTI_HOST = flags.DEFINE_bool("multi_host", False, "Join the processes of this TPU slice.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, for processes that are not on a TPU slice."
)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Processes, with --coordinator.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Of this one, with --coordinator.")


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """With the other processes that the flags speak of, if any; before JAX does anything else.

  When another one is gone, the process ends at once with one line and `EXIT_LOST_PROCESS`: what
  would otherwise run at exit waits for the other. Checkpoints that are whole stay. When process 0
  is gone, JAX aborts the others before that (exit code 134, and a message among stack traces).

  An error in this process ends it at once too, with the exit code that it would have alone.

  Raises:
    UserError: the flags do not fit together.
    SystemExit: with `EXIT_LOST_PROCESS`, where process 0 is not to be found.
  """
  told = (_COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value)
  is_told = told != (None, None, None)
  if not _MULTI_HOST.value and not is_told:
    yield
    return
  if _MULTI_HOST.value == is_told or (is_told and None in told):
    raise UserError(
      "give --multi_host on a TPU slice, or --coordinator, --process_count and --process_index, "
      "all three, anywhere else"
    )
  if is_told and not 0 <= _PROCESS_INDEX.value < _PROCESS_COUNT.value:
    raise UserError(
      f"--process_index={_PROCESS_INDEX.value} is not one of --process_count="
      f"{_PROCESS_COUNT.value} processes, which are counted from 0"
    )
  try:
    jax.distributed.initialize(
      *told,
      heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_JAX_SHUTDOWN_SECONDS,
    )
  except ValueError as error:
    message = str(error).splitlines()[0]
    raise UserError(f"the processes cannot come together: {message}") from error
  except RuntimeError as error:
    # Process 0 has no address yet. Has it one and does not answer in 5 minutes, JAX aborts (134).
    message = str(error).splitlines()[0]
    print(
      f"error: the processes did not come together: {message}; start all of them again",
      file=sys.stderr,
    )
    sys.exit(EXIT_LOST_PROCESS)
  watch = _Watch()
  try:
    yield
  except Terminated:
    # All of them end so.
    watch.stop(_FINISHED)
    raise
  except BaseException as error:
    if not isinstance(error, UserError | KeyboardInterrupt):
      # A collective or a save may notice another one's end before the watch does.
      print(
        f"process {jax.process_index()}: {type(error).__name__}; waits up to "
        f"{_NOTICED_SECONDS_MAX} s to hear whether another process is gone",
        file=sys.stderr,
        flush=True,
      )
      time.sleep(_NOTICED_SECONDS_MAX)
    code = report_error(error)
    watch.stop(_FAILED)
    if is_first():
      # The others hear it from this process.
      time.sleep(2 * _SIGN_OF_LIFE_SECONDS)
    # At exit JAX would wait for the others, which leave without a word, and abort.
    os._exit(code)
  watch.stop(_FINISHED)


def is_first() -> bool:
  """Whether this process writes what there is one of."""
  return jax.process_index() == 0


class _Watch:
  """A thread that says that this process lives, and listens for the others."""

  def __init__(self):
    # The store has no public name.
    self._store = jax._src.distributed.global_state.client
    self._own = f"{_FOLDER}{jax.process_index()}"
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._run, name="other processes", daemon=True)
    self._thread.start()

  def stop(self, last_word: str) -> None:
    """Says why this process will be silent."""
    self._stopped.set()
    self._thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._store.key_value_set(self._own, last_word, allow_overwrite=True)

  def _run(self) -> None:
    heard: dict[str, tuple[str, float]] = {}
    count = 0
    while not self._stopped.wait(_SIGN_OF_LIFE_SECONDS if count else 0):
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
        if word == _FAILED:
          _leave(f"process {index} has failed; its own output says why")
        silent_seconds = now_seconds - heard[name][1]
        if word != _FINISHED and silent_seconds > SILENT_SECONDS_MAX:
          _leave(f"process {index} has been silent for {silent_seconds:.0f} s")


def _leave(reason: str) -> NoReturn:
  sys.stdout.flush()
  print(
    f"error: process {jax.process_index()} of {jax.process_count()} has lost another one: "
    f"{reason}; start all of them again, they resume from the newest checkpoint",
    file=sys.stderr,
    flush=True,
  )
  os._exit(EXIT_LOST_PROCESS)
