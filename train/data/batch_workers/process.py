"""The program of a data worker: makes the batches that the process which started it asks for.

    python -m train.data.batch_workers.process DESCRIPTOR

The first message on the socket is the function that makes a batch, every other one is the arguments
of one call. A worker ignores the signals that tell a run to end, because the run needs its batches
until it has ended. It leaves when the socket closes, which it does with the other process, however
that one ends. Workers are started often and by the dozen, so this module imports little.
"""

import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from train.data.batch_workers import messages

IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(descriptor: int) -> None:
  """Makes batches until the socket closes."""
  for number in IGNORED_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  connection = socket.socket(fileno=descriptor)
  requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
  threading.Thread(target=_serve, args=(connection, requests), daemon=True).start()
  # This thread only listens, so that it notices the other process's end even while a read hangs.
  try:
    while True:
      requests.put(messages.receive(connection))
  except (EOFError, OSError):
    os._exit(0)


def _serve(connection: socket.socket, requests: queue.SimpleQueue) -> None:
  make_batch: Callable[..., Any] = requests.get()
  while True:
    arguments = requests.get()
    try:
      answer = make_batch(*arguments)
    except MemoryError:
      # What frees memory, and what the kernel does when it finds no more.
      os.kill(os.getpid(), signal.SIGKILL)
    except Exception as error:
      answer = messages.Failure(error, traceback.format_exc())
    try:
      messages.send(connection, answer)
    except OSError:
      os._exit(1)


if __name__ == "__main__":
  main(int(sys.argv[1]))
