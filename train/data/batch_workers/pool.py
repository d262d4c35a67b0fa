"""Worker processes that make batches; one that is killed or stopped is replaced and asked again.

Python's and Grain's pools do not survive the death of a worker, and Grain's (0.2.18) leaves named
shared memory behind, has locks that a killed worker keeps, and imports the whole program in each
worker, which any signal can end meanwhile.
"""

import collections
import contextlib
import pathlib
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from nfnet.errors import UserError
from nfnet.system.module_process import module_command, module_environment
from train.data.batch_workers import messages
from train.data.batch_workers.deaths import WorkerDeaths, describe_end
from train.data.batch_workers.process import IGNORED_SIGNALS

_PROGRAM = "train.data.batch_workers.process"
STOPPED_SECONDS_MAX = 60
"""Time for which a worker may be stopped (SIGSTOP) before another one takes its place."""

_POLL_SECONDS = 1
_SECONDS_TO_END = 3
_SECONDS_TO_RETRY = 1


class ClosedError(Exception):
  """The error of a thread that waits for a batch of workers that another thread has ended."""


class WorkerPool:
  """Worker processes that take turns; may be closed by any thread."""

  def __init__(self, make_batch: Callable[..., Any], count: int, deaths: WorkerDeaths):
    """Starts the processes.

    Args:
      make_batch: function that makes a batch; it must pickle.
      count: number of processes.
      deaths: is told of each worker that is killed.
    """
    self._make_batch = make_batch
    self._deaths = deaths
    self._lock = threading.Condition()
    self._is_closed = False
    with self._lock:
      self._workers = [self._start() for _ in range(count)]
    self._requested = self._received = 0

  def request(self, *arguments: Any) -> None:
    """Asks the next worker for a batch: `make_batch(*arguments)`."""
    self._workers[self._requested % len(self._workers)].request(arguments)
    self._requested += 1

  def receive(self) -> Any:
    """Waits for the oldest batch that was asked for and returns it.

    Raises:
      ClosedError: `close` was called.
      TooManyDeathsError: workers are killed again and again.
      Exception: what `make_batch` has raised.
    """
    turn = self._received % len(self._workers)
    while (answer := self._workers[turn].receive()) is None:
      self._replace_dead(turn)
    self._received += 1
    if isinstance(answer, messages.Failure):
      if not isinstance(answer.error, UserError):
        answer.error.add_note(f"in a data worker:\n{answer.text}")
      raise answer.error
    return answer

  def close(self) -> None:
    """Ends the processes, wherever they are stuck."""
    with self._lock:
      self._is_closed = True
      self._lock.notify_all()
      for worker in self._workers:
        worker.end()

  def _replace_dead(self, turn: int) -> None:
    """Starts others in place of the worker whose turn it is and of all that died with it."""
    with self._lock:
      self._raise_if_closed()
      for i, worker in enumerate(self._workers):
        if i != turn and worker.is_running():
          continue
        # The socket of a process that is being ended closes a moment before the process is gone.
        return_code = worker.end(patience_seconds=5)
        if return_code is None or return_code >= 0:
          raise RuntimeError(f"a data worker {describe_end(return_code)}; its output says why")
        self._deaths.add(worker.reason or describe_end(return_code))
        self._workers[i] = self._start()
        for arguments in worker.pending:
          self._workers[i].request(arguments)

  def _start(self) -> "_Worker":
    """Starts a worker, again and again if the system has no memory or no descriptors for it."""
    while True:
      try:
        return _Worker(self._make_batch)
      except OSError as error:
        self._deaths.add(f"could not be started ({error.strerror})")
      self._lock.wait(_SECONDS_TO_RETRY)
      self._raise_if_closed()

  def _raise_if_closed(self) -> None:
    if self._is_closed:
      raise ClosedError


class _Worker:
  """One worker process, and what it was asked for.

  Attributes:
    pending: arguments of the batches that it has not delivered, oldest first.
    reason: why this process has killed it; empty if it has not.
  """

  def __init__(self, make_batch: Callable[..., Any]):
    self.pending: collections.deque[tuple] = collections.deque()
    self.reason = ""
    self._in_use = threading.Lock()
    self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    # A new session, so that signals to the process group, as from a terminal, do not reach it.
    # Those that come by name before it ignores them wait: it inherits this thread's mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
      with theirs:
        self._process = subprocess.Popen(
          module_command(_PROGRAM, str(theirs.fileno())),
          pass_fds=[theirs.fileno()],
          start_new_session=True,
          stdin=subprocess.DEVNULL,
          stdout=subprocess.DEVNULL,
          env=module_environment(),
        )
    except OSError:
      self._connection.close()
      raise
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    self._send(make_batch)

  def request(self, arguments: tuple) -> None:
    """Asks for a batch."""
    self.pending.append(arguments)
    self._send(arguments)

  def receive(self) -> Any:
    """Waits for the oldest batch; None if the process is gone."""
    try:
      with self._in_use:
        self._wait_for_answer()
        answer = messages.receive(self._connection)
    except (EOFError, ConnectionError):
      return None
    self.pending.popleft()
    return answer

  def is_running(self) -> bool:
    """Returns whether the process has not ended."""
    return self._process.poll() is None

  def end(self, *, patience_seconds: float = 0) -> int | None:
    """Kills the process, unless it ends by itself within some seconds.

    Returns:
      Its return code; None if it does not end, which happens while the kernel reads for it.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(patience_seconds)
    self._process.kill()
    # Wakes the thread that waits in `receive`, if there is one.
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_RDWR)
    with self._in_use:
      self._connection.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(_SECONDS_TO_END)
    return self._process.returncode

  def _wait_for_answer(self) -> None:
    """Waits until there is something to receive, and kills the process if it is stopped for good.

    One that reads from a slow disk may take any time.
    """
    poll = select.poll()
    poll.register(self._connection, select.POLLIN)
    # Counted, not timed: if this process was stopped itself, the worker has not had the time.
    polls = 0
    while not poll.poll(1000 * _POLL_SECONDS):
      polls = polls + 1 if _is_stopped(self._process.pid) else 0
      if polls * _POLL_SECONDS >= STOPPED_SECONDS_MAX:
        self.reason = f"was stopped for {STOPPED_SECONDS_MAX} s and has been killed"
        self._process.kill()
        return

  def _send(self, message: Any) -> None:
    # If the process is gone, `receive` will say so.
    with contextlib.suppress(ConnectionError):
      messages.send(self._connection, message)


def _is_stopped(pid: int) -> bool:
  """Returns whether a process is stopped, as by SIGSTOP; False where the system has no /proc."""
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  # After the name of the program, which may have spaces and brackets.
  return state.rpartition(")")[2].split()[0] == "T"
