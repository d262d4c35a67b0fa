"""Paths in a bucket, with the methods that `pathlib.Path` has for files.

A bucket has objects and no folders: a folder is there as long as an object is whose name begins
with the folder's. Creating one does nothing, and renaming one copies its objects. Nothing can be
appended to or locked.

Orbax and everything else that makes paths by `etils.epath.Path` gets this class for `gs://` once
this module is imported.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from etils.epath import gpath, stat_utils

from nfnet.buckets import objects


@epath.register_path_cls(objects.SCHEME)
class BucketPath(gpath.PosixGPath):
  """The path of an object or folder, such as `gs://bucket/folder/object`."""

  @property
  def bucket(self) -> str:
    """Name of the bucket."""
    return objects.split(os.fspath(self))[0]

  @property
  def object_name(self) -> str:
    """Name of the object or folder in the bucket; empty for the bucket itself."""
    return objects.split(os.fspath(self))[1]

  def absolute(self) -> "BucketPath":
    """Returns the path itself."""
    return self

  def names(self) -> list[str]:
    """Returns the names of all objects in this folder and in those in it, without the folder's."""
    return objects.names(self.bucket, self.object_name)

  def exists(self) -> bool:
    """Returns whether there is such an object, or an object in such a folder."""
    return self.is_file() or self.is_dir()

  def is_file(self) -> bool:
    """Returns whether there is such an object."""
    return bool(self.object_name) and objects.exists(self.bucket, self.object_name)

  def is_dir(self) -> bool:
    """Returns whether an object is in such a folder."""
    return bool(self.names())

  def is_symlink(self) -> bool:
    """Returns that it is none."""
    return False

  def iterdir(self) -> Iterator["BucketPath"]:
    """Yields the objects and folders in this folder."""
    for name in sorted({name.partition("/")[0] for name in self.names()} - {""}):
      yield self / name

  def glob(self, pattern: str) -> Iterator["BucketPath"]:
    """Yields the objects and folders in this folder whose names match a pattern without slashes."""
    return (path for path in self.iterdir() if path.match(pattern))

  def walk(
    self,
    *,
    top_down: bool = True,
    on_error: Callable[[OSError], object] | None = None,
  ) -> Iterator[tuple["BucketPath", list[str], list[str]]]:
    """Yields each folder with the names of the folders and objects in it, from the top."""
    files: dict[str, list[str]] = {"": []}
    folders: dict[str, list[str]] = {"": []}
    for name in self.names():
      *parents, file = name.split("/")
      for depth, parent in enumerate(parents):
        above, path = "/".join(parents[:depth]), "/".join(parents[: depth + 1])
        if path not in files:
          files[path], folders[path] = [], []
          folders[above].append(parent)
      if file:
        files["/".join(parents)].append(file)
    for path in files:
      yield (self / path if path else self), folders[path], files[path]

  def stat(self) -> stat_utils.StatResult:
    """Returns what is known of an object, which is read for its length, or of a folder."""
    if self.is_dir():
      return stat_utils.StatResult(is_directory=True, length=0, mtime=0)
    return stat_utils.StatResult(is_directory=False, length=len(self.read_bytes()), mtime=0)

  def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
    """Leaves the bucket alone: a folder is there as soon as an object is in it."""

  def rmdir(self) -> None:
    """Raises an error unless nothing is in the folder."""
    if self.is_dir():
      raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(self))

  def rmtree(self, missing_ok: bool = False) -> None:
    """Deletes all objects in the folder."""
    objects.delete_all(self.bucket, self.object_name)

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes the object."""
    if not missing_ok and not self.is_file():
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(self))
    objects.delete(self.bucket, self.object_name)

  def read_bytes(self) -> bytes:
    """Returns the content of the object."""
    return objects.read(self.bucket, self.object_name)[0]

  def write_bytes(self, data: bytes) -> int:
    """Writes the object as a whole."""
    objects.write(self.bucket, self.object_name, bytes(data))
    return len(data)

  def open(self, mode: str = "r", **unused_arguments: Any) -> Any:
    """Opens the object, in a mode for reading, or for writing it as a whole when it is closed."""
    kind, is_text = mode.replace("b", "").replace("t", ""), "b" not in mode
    if kind == "r":
      file: Any = io.BufferedReader(_Reader(self), buffer_size=2**20)
    elif kind == "w":
      file = _Writer(self)
    else:
      raise OSError(errno.EOPNOTSUPP, f"objects of a bucket have no mode {mode!r}", os.fspath(self))
    return io.TextIOWrapper(file, encoding="utf-8") if is_text else file

  def rename(self, target: epath.PathLike) -> "BucketPath":
    """Copies the object or all objects in the folder, then deletes them; it is not atomic."""
    target = type(self)(os.fspath(target))
    names = [""] if self.is_file() else [f"/{name}" for name in self.names()]
    if not names:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(self))
    for name in names:
      content, _ = objects.read(self.bucket, self.object_name + name)
      objects.write(target.bucket, target.object_name + name, content)
    for name in names:
      objects.delete(self.bucket, self.object_name + name)
    return target

  def replace(self, target: epath.PathLike) -> "BucketPath":
    """Renames the object or folder."""
    return self.rename(target)

  def copy(self, dst: epath.PathLike, overwrite: bool = False) -> "BucketPath":
    """Copies an object within buckets."""
    target = type(self)(os.fspath(dst))
    if not overwrite and target.exists():
      raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    target.write_bytes(self.read_bytes())
    return target


class _Reader(io.RawIOBase):
  """Reads an object from its beginning."""

  def __init__(self, path: BucketPath):
    self._pieces = objects.read_pieces(path.bucket, path.object_name)
    # So that opening what is not there fails.
    self._rest = memoryview(next(self._pieces))

  def readable(self) -> bool:
    """Returns that it can be read."""
    return True

  def readinto(self, buffer: Any) -> int:
    """Reads into a buffer; returns the number of bytes, 0 at the end."""
    while not self._rest:
      piece = next(self._pieces, None)
      if piece is None:
        return 0
      self._rest = memoryview(piece)
    count = min(len(buffer), len(self._rest))
    buffer[:count], self._rest = self._rest[:count], self._rest[count:]
    return count


class _Writer(io.BytesIO):
  """Collects what is written, and writes the object when it is closed."""

  def __init__(self, path: BucketPath):
    super().__init__()
    self._path = path

  def close(self) -> None:
    """Writes the object."""
    if not self.closed:
      content = self.getvalue()
      super().close()
      self._path.write_bytes(content)
