"""Opens files of which only the path is known."""

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a file to read its bytes.

  Raises:
    OSError: the file cannot be opened, or is no regular file: reading a pipe or a device might
      never end.
  """
  # Without the flag, opening a pipe would wait for someone to write to it.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  mode = os.fstat(descriptor).st_mode
  if not stat.S_ISREG(mode):
    os.close(descriptor)
    if stat.S_ISDIR(mode):
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is not a regular file", path)
  return open(descriptor, "rb")
