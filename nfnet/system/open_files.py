"""The operating system's limit on the files that a process may have open at a time."""

import errno
import os
import resource


def raise_open_files_max() -> int:
  """Raises this process's soft limit to its hard limit, and returns the limit.

  Soft limits are low, usually 1024, for the sake of old programs that use select().
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != hard:
    try:
      resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
      soft = hard
    # macOS has a hard limit without bound and refuses it.
    except (ValueError, OSError):
      pass
  return soft if soft != resource.RLIM_INFINITY else 2**20


def open_files_error() -> str | None:
  """Says that no file can be opened because a limit is reached; None if one can be.

  Libraries that report what failed without saying why are asked for in this way.
  """
  try:
    os.close(os.open(os.devnull, os.O_RDONLY))
  except OSError as error:
    if error.errno == errno.EMFILE:
      soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
      how = "ulimit -n" if soft != hard else "as root: ulimit -Hn, or LimitNOFILE of systemd"
      return f"this process has reached its limit of {soft} open files; raise it ({how})"
    if error.errno == errno.ENFILE:
      return "this machine has reached its limit of open files; raise it (sysctl fs.file-max)"
  return None
