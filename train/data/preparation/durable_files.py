"""Writes small files so that they survive a kill or a power failure: as a whole or not at all."""

import errno
import os
import pathlib

# What file systems without the concept of syncing a folder answer.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_durably(path: pathlib.Path, text: str) -> None:
  """Writes or replaces a file; a reader sees the whole old or the whole new one.

  On the way, there is a file of the same name that ends in `.tmp`.
  """
  unfinished = path.with_suffix(".tmp")
  with unfinished.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  rename_durably(unfinished, path)


def rename_durably(unfinished: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a file whose content is synced already, and syncs the folder with its new name."""
  os.replace(unfinished, path)
  sync(path.parent)


def sync(path: pathlib.Path) -> None:
  """Waits until the content of a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in _CANNOT_SYNC or not path.is_dir():
      raise
  finally:
    os.close(descriptor)
