"""Opens and reads files of foreign content: never a pipe or a device, and never without a bound."""

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a file to read its bytes.

  Raises:
    OSError: the file cannot be opened, or is no regular file (EISDIR, EINVAL): reading a pipe or a
      device might never end.
  """
  # Without O_NONBLOCK, opening a named pipe would wait for a writer.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  mode = os.fstat(descriptor).st_mode
  if not stat.S_ISREG(mode):
    os.close(descriptor)
    if stat.S_ISDIR(mode):
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
  return open(descriptor, "rb")


def read_regular_file(path: str | os.PathLike[str], bytes_max: int) -> bytes:
  """Returns the content of a file.

  Args:
    path: path of the file.
    bytes_max: most bytes that the file may have.

  Raises:
    OSError: the file cannot be opened, is no regular file, or is too large (EFBIG).
  """
  with open_regular(path) as file:
    # What a file system says of the length is not always true, as in /proc.
    content = file.read(bytes_max + 1)
  if len(content) > bytes_max:
    raise OSError(errno.EFBIG, f"has more than {bytes_max:,} bytes", os.fspath(path))
  return content
