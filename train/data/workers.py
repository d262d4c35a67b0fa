"""Ends worker processes of `multiprocessing` with the process that started them.

`train.prepare_data` starts processes with this module, so it imports the standard library only.
"""

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
  """Makes this worker process end when its parent ends, for whatever reason.

  A worker that waits for work does not notice that its parent was killed: it holds both ends of
  its queues. The signal that Linux offers for this (PR_SET_PDEATHSIG) already fires when the
  parent's THREAD that started the worker ends; the pipe behind `parent_process()` closes only with
  the process.
  """
  threading.Thread(target=_wait_and_exit, name="exit-with-parent", daemon=True).start()


def _wait_and_exit() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None, "exit_with_parent() is for worker processes"
  parent.join()
  os._exit(1)
