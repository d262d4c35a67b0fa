"""Threads of this process that make batches."""

import collections
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any

_SECONDS_TO_END = 3.0


class WorkerThreads:
  """Threads that each make a whole batch at a time."""

  def __init__(self, make_batch: Callable[..., Any], count: int):
    """Starts the threads.

    Args:
      make_batch: function that makes a batch; several threads call it.
      count: number of threads.
    """
    self._make_batch = make_batch
    self._tasks: queue.SimpleQueue = queue.SimpleQueue()
    self._pending: collections.deque[concurrent.futures.Future] = collections.deque()
    self._is_closed = False
    # Daemons, which an executor's threads are not: a read that never returns must not keep the
    # process alive.
    self._threads = [
      threading.Thread(target=self._run, name=f"data worker {i}", daemon=True) for i in range(count)
    ]
    for thread in self._threads:
      thread.start()

  def request(self, *arguments: Any) -> None:
    """Asks for a batch: `make_batch(*arguments)`."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    self._pending.append(future)
    self._tasks.put((future, arguments))

  def receive(self) -> Any:
    """Waits for the oldest batch that was asked for and returns it, or raises what it raised."""
    return self._pending.popleft().result()

  def close(self) -> None:
    """Ends the threads; one that is stuck in a read ends with the process."""
    self._is_closed = True
    for future in self._pending:
      future.cancel()
    for _ in self._threads:
      self._tasks.put(None)
    for thread in self._threads:
      thread.join(_SECONDS_TO_END)

  def _run(self) -> None:
    while (task := self._tasks.get()) is not None and not self._is_closed:
      future, arguments = task
      if not future.set_running_or_notify_cancel():
        continue
      try:
        future.set_result(self._make_batch(*arguments))
      except BaseException as error:
        future.set_exception(error)
