"""The exit codes of training, and which of them are final.

Every command of this project ends with those of `nfnet.command_line`; the others are of training
only. `docs/reliability.md` shows them as a table.
"""

from nfnet.command_line import (
  EXIT_IN_USE,
  EXIT_INTERRUPTED,
  EXIT_UNEXPECTED_ERROR,
  EXIT_USER_ERROR,
)

__all__ = [
  "EXIT_ABORTED",
  "EXIT_DONE",
  "EXIT_HUNG_UP",
  "EXIT_INTERRUPTED",
  "EXIT_IN_USE",
  "EXIT_KILLED",
  "EXIT_LOST_PROCESS",
  "EXIT_TERMINATED",
  "EXIT_UNEXPECTED_ERROR",
  "EXIT_USER_ERROR",
  "FINAL_EXIT_CODES",
  "shell_exit_code",
]

EXIT_DONE = 0
EXIT_LOST_PROCESS = 75
"""Another process is gone, silent or absent, or data workers are killed again and again, perhaps
for lack of memory, which a new start may find: start all processes again (EX_TEMPFAIL of
sysexits.h)."""
EXIT_HUNG_UP = 129
"""The terminal was closed before a training run ignored it (128 + SIGHUP)."""
EXIT_ABORTED = 134
"""JAX aborted this process because process 0 was killed (128 + SIGABRT)."""
EXIT_KILLED = 137
"""Killed, perhaps for lack of memory (128 + SIGKILL)."""
EXIT_TERMINATED = 143
"""Told to end, with everything saved (128 + SIGTERM): no step is lost, start again."""

FINAL_EXIT_CODES = (EXIT_UNEXPECTED_ERROR, EXIT_USER_ERROR)
"""Codes of a program that would fail in the same way again. After any other code but `EXIT_DONE`,
whatever supervises the run (systemd, Kubernetes, a sweep) starts the same command again.
`EXIT_IN_USE` is not final either: a run whose machine was cut off, or that has been told to end,
may still be writing when its successor starts."""


def shell_exit_code(return_code: int) -> int:
  """Returns the exit code as a shell reports it: 128 + signal for a process that a signal ended.

  Args:
    return_code: what `subprocess.Popen.wait` returns: negative numbers are signals.
  """
  return return_code if return_code >= 0 else 128 - return_code
