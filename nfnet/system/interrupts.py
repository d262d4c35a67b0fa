"""Ctrl-C while a command still imports its modules, which takes seconds: one line, no traceback."""

import os
import signal
import sys

EXIT_INTERRUPTED = 130
"""Interrupted at the keyboard (128 + SIGINT, as shells count)."""


def end_in_one_line_while_importing() -> None:
  """Makes Ctrl-C end the process at once if it starts a command of this project (`python -m`).

  Each package that has commands calls this first. A program that imports this project as a library
  keeps its own way.
  """
  # This is what Python puts there while it looks for the module to run, for which it imports the
  # package that the module is in.
  if sys.argv[:1] == ["-m"]:
    end_in_one_line()


def end_in_one_line() -> None:
  """Makes Ctrl-C end the process at once, unless someone else already handles it."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def raise_keyboard_interrupt() -> None:
  """Makes Ctrl-C raise KeyboardInterrupt again, as soon as there is something to clean up."""
  if signal.getsignal(signal.SIGINT) is _end:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*unused) -> None:
  os.write(2, b"interrupted\n")
  os._exit(EXIT_INTERRUPTED)
