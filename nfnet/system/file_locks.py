"""The kernel's lock on a file (flock), which ends with the process that holds it, however it dies.

A lock is on the open file, not on its name. Since the process that held it before may have removed
the file, whoever has got a lock has to check that the file is still the one under its name.
"""

import errno
import fcntl
import os

# What file systems without locks answer, most of them shared ones.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def try_lock(descriptor: int) -> bool | None:
  """Locks an open file for this process alone, without waiting, until the file is closed.

  Args:
    descriptor: descriptor of the file.

  Returns:
    Whether the file is locked now; None if its file system knows no locks.

  Raises:
    OSError: the file system fails.
  """
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno in _NO_LOCKS:
      return None
    raise
  return True


def is_same_file(descriptor: int, path: str | os.PathLike[str]) -> bool:
  """Returns whether an open file is the one under a name: not renamed, removed or replaced."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except OSError:
    return False
