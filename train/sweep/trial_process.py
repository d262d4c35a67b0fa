"""Runs a trial's training: `train.pretrain` in a process that ends with the worker that started it.

    python -m train.sweep.trial_process GRACE_SECONDS PRETRAIN_ARGUMENTS...

A worker that is killed cannot end its training, which would go on in the workdir that another
worker takes over. But the pipe to this process's stdin closes when the worker ends for whatever
reason. The training then gets SIGTERM, after which it saves a checkpoint, and SIGKILL when the
grace period is over.
"""

import os
import runpy
import signal
import sys
import threading
import time

PROGRAM = "train.pretrain"


def _end_with_worker(grace_seconds: float) -> None:
  """Waits until the worker is gone and then ends this process."""
  # Read without sys.stdin, because a thread waiting in it holds a lock that the exiting interpreter
  # needs.
  while os.read(0, 1024):
    pass
  print("the worker is gone; the training ends", file=sys.stderr, flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(grace_seconds)
  os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
  """Runs the training under the watch of a thread."""
  grace_seconds = float(sys.argv[1])
  threading.Thread(
    target=_end_with_worker, args=(grace_seconds,), name="end with worker", daemon=True
  ).start()
  sys.argv[:] = [PROGRAM, *sys.argv[2:]]
  runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
