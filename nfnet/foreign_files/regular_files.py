"""Opens files in whose place anything may be: never a pipe or a device, never read unbounded."""

import errno
import os
import stat
from typing import Any, BinaryIO, Literal

from nfnet.system.paths import as_path, is_in_bucket


def open_regular(path: str | os.PathLike[str]) -> Any:
  """Opens a file, or an object of a bucket, to read its bytes.

  Raises:
    OSError: the file cannot be opened, or is not a regular file (EISDIR, EINVAL): reading a pipe or
      a device might never end.
  """
  if is_in_bucket(path):
    return as_path(path).open("rb")
  return open(_open(path, os.O_RDONLY), "rb")


def open_regular_to_write(
  path: str | os.PathLike[str], mode: Literal["ab", "wb"], *, buffering: int = -1
) -> BinaryIO:
  """Opens or creates a file as `open` does in the modes "ab" and "wb".

  Raises:
    OSError: the file cannot be opened, or is not a regular file: a pipe might have no reader.
  """
  flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "ab" else os.O_TRUNC)
  return open(_open(path, flags), mode, buffering=buffering)


def _open(path: str | os.PathLike[str], flags: int) -> int:
  # Without O_NONBLOCK, opening a named pipe would wait for whoever opens its other end.
  descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
  mode = os.fstat(descriptor).st_mode
  if not stat.S_ISREG(mode):
    os.close(descriptor)
    if stat.S_ISDIR(mode):
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
  return descriptor


def read_regular_file(path: str | os.PathLike[str], bytes_max: int) -> bytes:
  """Returns the content of a file.

  Args:
    path: path of the file.
    bytes_max: most bytes that the file may have.

  Raises:
    OSError: the file cannot be opened, is not a regular file, or is too large (EFBIG).
  """
  with open_regular(path) as file:
    # What a file system says of the length is not always true, as in /proc.
    content = file.read(bytes_max + 1)
  if len(content) > bytes_max:
    raise OSError(errno.EFBIG, f"has more than {bytes_max:,} bytes", os.fspath(path))
  return content
