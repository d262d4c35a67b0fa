"""Calls a function in several threads that keep no process from ending.

The threads of `concurrent.futures` are waited for at the end of a process, and a request to a
bucket that does not answer is repeated for many minutes, in which Ctrl-C would do nothing.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def map_unordered(
  function: Callable[[Any], Any], arguments: Iterable[Any], threads: int
) -> Iterator[Any]:
  """Yields the results of a function for some arguments, in the order in which they are ready.

  If the caller stops, or a call raises an error, no further calls begin, and those under way are
  not waited for.

  Args:
    function: function of one argument.
    arguments: arguments.
    threads: number of calls at once.

  Raises:
    Exception: the first error that a call has raised.
  """
  waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
  for argument in arguments:
    waiting.put(argument)
  count, results = waiting.qsize(), queue.SimpleQueue()
  stop = threading.Event()

  def work() -> None:
    while not stop.is_set():
      try:
        argument = waiting.get_nowait()
      except queue.Empty:
        return
      try:
        results.put((function(argument), None))
      except Exception as error:
        results.put((None, error))

  for _ in range(min(threads, count)):
    threading.Thread(target=work, name="bucket", daemon=True).start()
  try:
    for _ in range(count):
      result, error = results.get()
      if error is not None:
        raise error
      yield result
  finally:
    stop.set()
