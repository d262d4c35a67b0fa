"""Writes small files so that they survive a kill or a power failure: as a whole or not at all."""

import errno
import os
import pathlib

from nfnet.system.paths import as_path, is_in_bucket

# What file systems without the concept of syncing a folder answer.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_durably(
  path: pathlib.PurePath, content: str | bytes, *, unfinished: pathlib.Path | None = None
) -> None:
  """Writes or replaces a file; a reader sees the whole old or the whole new one.

  Args:
    path: path of the file, or of an object of a bucket, which is never seen in part.
    content: text, which is written as UTF-8, or bytes.
    unfinished: path of the file while it is written, in the same folder; None is `path` with the
      suffix `.tmp`, for files that no two processes write at once.

  Raises:
    OSError: it cannot be written; the file is as it was.
  """
  if is_in_bucket(path):
    _write_object(path, content)
    return
  unfinished = unfinished or path.with_suffix(".tmp")
  try:
    write_synced(unfinished, content)
    rename_durably(unfinished, path)
  finally:
    unfinished.unlink(missing_ok=True)


def write_synced(path: pathlib.PurePath, content: str | bytes) -> None:
  """Writes a new file, or an object, that is whole after a power failure if its name has survived.

  Whatever else has the name is removed and never written to: opening a pipe might wait forever, and
  a link may lead to somebody else's file.

  Raises:
    OSError: it cannot be written, or a folder is in its place.
  """
  if is_in_bucket(path):
    _write_object(path, content)
    return
  path.unlink(missing_ok=True)
  with path.open("xb") as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())


def _write_object(path: pathlib.PurePath, content: str | bytes) -> None:
  as_path(path).write_bytes(content.encode() if isinstance(content, str) else content)


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
