"""Makes a failed read of a checkpoint end quietly."""

import asyncio
import contextlib
from collections.abc import Iterator


class _FinishingEventLoop(asyncio.SelectorEventLoop):
  """Waits for its tasks before it closes."""

  def close(self) -> None:
    if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
      self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    super().close()


@contextlib.contextmanager
def finished_reads() -> Iterator[None]:
  """Within it Orbax waits for all reads under way before it raises the error of the first.

  Orbax 0.12.8 closes its event loop at the first error. Each TensorStore read that ends after that
  prints a traceback, and each abandoned coroutine one more when it is collected (up to 40 seen
  for one deleted file of a checkpoint with 20 arrays). Orbax has no parameter for the loop.
  """
  original = asyncio.new_event_loop
  asyncio.new_event_loop = _FinishingEventLoop
  try:
    yield
  finally:
    asyncio.new_event_loop = original
