"""The worker processes and threads that read and decode images: how many, and how they end.

`train.prepare_data` starts processes with this module too, so it imports next to nothing.
"""

import multiprocessing
import os
import threading

from nfnet.errors import UserError

_THREADS_MAX = 16
_PREFETCH_BYTES_MAX = 2 * 2**30
# One that is made, one that waits, and one that is handed over.
_BATCHES_PER_PROCESS = 3


def threads_per_process(workers: int, batch_bytes: int) -> int:
  """Returns the number of threads in each process that makes batches.

  Args:
    workers: number of worker processes; with 0, the threads run in the training process.
    batch_bytes: size of one batch of this host; each thread makes one in advance.
  """
  threads = 1 if workers else min(os.cpu_count() or 1, _THREADS_MAX)
  return max(1, min(threads, _PREFETCH_BYTES_MAX // batch_bytes))


def check_prefetched_bytes(workers: int, batch_bytes: int, memory_bytes: int | None = None) -> None:
  """Raises UserError if the batches that are made in advance would not fit into memory.

  Args:
    workers: number of worker processes; with 0, batches are made in the training process.
    batch_bytes: size of one batch of this host.
    memory_bytes: memory of this host; None asks the operating system.
  """
  if memory_bytes is None:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  needed_bytes = max(1, workers) * _BATCHES_PER_PROCESS * batch_bytes
  if needed_bytes > memory_bytes:
    raise UserError(
      f"data.workers={workers}: {_BATCHES_PER_PROCESS} batches of {batch_bytes / 1e9:.3g} GB in "
      f"each process take {needed_bytes / 1e9:.3g} GB, and this host has "
      f"{memory_bytes / 1e9:.3g} GB; lower data.workers or the batch size"
    )


def kill_grain_workers() -> None:
  """Kills the worker processes that Grain has started, wherever they are stuck.

  They are recognized by the names that Grain gives them. These are not a public interface (read in
  grain 0.2.18).
  """
  for child in multiprocessing.active_children():
    if child.name.startswith("grain-"):
      child.kill()


def exit_with_parent() -> None:
  """Makes this worker process end when its parent ends, for whatever reason.

  A worker that waits for work does not notice that its parent was killed: it holds both ends of
  its queues. The signal that Linux offers for this (PR_SET_PDEATHSIG) already fires when the
  parent's THREAD that started the worker ends, and the input pipeline starts workers from
  short-lived threads; the pipe behind `parent_process()` closes only with the process.
  """
  threading.Thread(target=_wait_and_exit, name="exit-with-parent", daemon=True).start()


def _wait_and_exit() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None, "exit_with_parent() is for worker processes"
  parent.join()
  os._exit(1)
