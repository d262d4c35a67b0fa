"""Reads whole files of foreign content: never a pipe or a device, and never without a bound."""

import errno
import os
import stat


def read_regular_file(path: str | os.PathLike[str], bytes_max: int) -> bytes:
  """Returns the content of a file.

  Args:
    path: path of the file.
    bytes_max: most bytes that the file may have.

  Raises:
    OSError: the file cannot be opened, is no regular file (EINVAL), or is too large (EFBIG).
  """
  # Without O_NONBLOCK, opening a named pipe would wait for a writer.
  with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    # What a file system says of the length is not always true, as in /proc.
    content = file.read(bytes_max + 1)
  if len(content) > bytes_max:
    raise OSError(errno.EFBIG, f"has more than {bytes_max:,} bytes", os.fspath(path))
  return content
