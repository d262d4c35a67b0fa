"""The exit codes of training, and which of them are final. Imports nothing.

All commands exit with the first three and the keyboard's, through `nfnet.command_line`.
`docs/reliability.md` shows them as a table.
"""

EXIT_DONE = 0
EXIT_UNEXPECTED_ERROR = 1
"""An error that nobody expected, printed with its traceback."""
EXIT_USER_ERROR = 2
"""An error that the user can correct (`nfnet.errors.UserError`), printed as one line."""
EXIT_LOST_PROCESS = 75
"""Another process has died or never joined: start all of them again (EX_TEMPFAIL in sysexits.h)."""
EXIT_INTERRUPTED = 130
"""Interrupted at the keyboard (128 + SIGINT, as shells count)."""
EXIT_ABORTED = 134
"""JAX aborted this process because process 0 has died (128 + SIGABRT)."""
EXIT_KILLED = 137
"""Killed, perhaps for lack of memory (128 + SIGKILL)."""
EXIT_TERMINATED = 143
"""Told to end, with everything saved (128 + SIGTERM): no step is lost, start again."""

FINAL_EXIT_CODES = (EXIT_UNEXPECTED_ERROR, EXIT_USER_ERROR)
"""Codes of a program that would fail in the same way again. After any other code but `EXIT_DONE`,
whatever supervises the run (systemd, Kubernetes, a sweep) starts the same command again."""


def shell_exit_code(return_code: int) -> int:
  """Returns the exit code as a shell reports it: 128 + signal for a process that a signal ended.

  Args:
    return_code: what `subprocess.Popen.wait` returns: negative numbers are signals.
  """
  return return_code if return_code >= 0 else 128 - return_code
