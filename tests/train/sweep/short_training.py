"""Stands in for the training of a trial: imports no JAX, and ends as the trial's epochs say.

    python short_training.py GRACE_SECONDS PRETRAIN_ARGUMENTS...

KILLED epochs end by a signal, LONG ones in a minute, and all others with that exit code. It leaves
its process id beside the workdir.
"""

import os
import pathlib
import signal
import sys
import time

KILLED, LONG = 137, 600


def main():
  arguments = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:])
  epochs = float(arguments["config.schedule.train_epochs"])
  print("last words", flush=True)
  pathlib.Path(arguments["workdir"]).with_name("pid").write_text(str(os.getpid()))
  if epochs == KILLED:
    os.kill(os.getpid(), signal.SIGKILL)
  if epochs == LONG:
    time.sleep(60)
  sys.exit(int(epochs))


if __name__ == "__main__":
  main()
