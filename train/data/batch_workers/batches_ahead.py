"""Decides how many batches are made in advance, within the memory of this host."""

import os

from nfnet.errors import UserError

_THREADS_MAX = 16
_PREFETCH_BYTES_MAX = 2 * 2**30
_BATCHES_AHEAD_PER_WORKER = 2


class LargeBatchesError(UserError):
  """The error for batches that do not fit into memory.

  Attributes:
    needed: the memory that they take, and that there is.
  """

  def __init__(self, needed: str, cure: str):
    super().__init__(f"{needed}; {cure}")
    self.needed = needed


def batches_ahead(workers: int, batch_bytes: int, memory_bytes: int | None = None) -> int:
  """Returns the number of batches to ask for in advance: of all workers, or one of each thread.

  Args:
    workers: number of worker processes; with 0, threads of this process make the batches.
    batch_bytes: size of one batch of this host.
    memory_bytes: memory of this host; None asks the operating system.

  Raises:
    LargeBatchesError: these batches would not fit into memory.
  """
  if workers:
    ahead = _BATCHES_AHEAD_PER_WORKER * workers
  else:
    threads = min(os.cpu_count() or 1, _THREADS_MAX)
    ahead = max(1, min(threads, _PREFETCH_BYTES_MAX // batch_bytes))
  if memory_bytes is None:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  # One more is in use.
  needed_bytes = (ahead + 1) * batch_bytes
  if needed_bytes > memory_bytes:
    raise LargeBatchesError(
      f"data.workers={workers}: {ahead + 1} batches of {batch_bytes / 1e9:.3g} GB take "
      f"{needed_bytes / 1e9:.3g} GB, and this host has {memory_bytes / 1e9:.3g} GB",
      "lower data.workers or the batch size" if workers else "lower the batch size",
    )
  return ahead
