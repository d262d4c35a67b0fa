"""Keeps a failed read or write of a checkpoint from printing tracebacks of those beside it.

This is the one place that replaces an attribute of another library (`asyncio.new_event_loop`); it
was written for Orbax 0.12.8.
"""

import asyncio
import contextlib
from collections.abc import Iterator


class _FinishingEventLoop(asyncio.SelectorEventLoop):
  """Waits for its running tasks before it closes, and lets those that wait for them notice."""

  def close(self) -> None:
    if not self.is_closed() and not self.is_running():
      self.run_until_complete(_finish())
    super().close()


async def _finish() -> None:
  # Even if no task is left, this begins after the callbacks of those that have just failed, without
  # which their errors would count as never retrieved.
  others = asyncio.all_tasks() - {asyncio.current_task()}
  await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def finished_transfers() -> Iterator[None]:
  """Makes Orbax finish all running reads and writes before it raises the error of the first.

  Orbax 0.12.8 closes its event loop at the first error. Every TensorStore read or write that ends
  later then prints a traceback, and every abandoned coroutine prints another when it is collected
  (up to 40 for one deleted file of a checkpoint with 20 arrays, and hundreds for a full disk).
  Orbax has no parameter for the loop. Saves make theirs in threads, as late as the last one.
  """
  original = asyncio.new_event_loop
  asyncio.new_event_loop = _FinishingEventLoop
  try:
    yield
  finally:
    asyncio.new_event_loop = original
