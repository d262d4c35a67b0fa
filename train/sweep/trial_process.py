"""A trial's training: `train.pretrain` in a process that ends with the worker that started it.

    python -m train.sweep.trial_process GRACE_SECONDS PRETRAIN_ARGUMENTS...

A worker that is killed cannot end its training, which would go on in the workdir that another
worker takes over. But the pipe to this process's stdin closes with the worker, however that came
about: the training then gets SIGTERM, which saves a checkpoint, and SIGKILL when the time of grace
is over.
"""

import os
import runpy
import signal
import sys
import threading
import time

PROGRAM = "train.pretrain"


def _end_with_worker(grace_seconds: float) -> None:
  # Not sys.stdin: a thread that waits in it holds a lock that the interpreter's end wants.
  while os.read(0, 1024):
    pass
  print("the worker is gone; the training ends", file=sys.stderr, flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(grace_seconds)
  os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
  """Trains."""
  grace_seconds = float(sys.argv[1])
  threading.Thread(
    target=_end_with_worker, args=(grace_seconds,), name="end with worker", daemon=True
  ).start()
  sys.argv[:] = [PROGRAM, *sys.argv[2:]]
  runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
