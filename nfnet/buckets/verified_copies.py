"""Copies files from a bucket to this machine once, verified, for all of its processes.

The copies lie in a cache folder: `NFNETS_CACHE`, or `~/.cache/nfnets` if that is not set. A file
gets its name there only when its SHA-256 is the expected one, so what has its name is whole. A copy
that was interrupted is continued where it stopped. Processes of a machine that want the same files
share the work: one copies a file while it holds the kernel's lock on it, and the others wait.
"""

import dataclasses
import errno
import hashlib
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from nfnet.buckets import objects
from nfnet.buckets.bucket_path import BucketPath
from nfnet.buckets.daemon_threads import map_unordered
from nfnet.errors import UserError, format_count
from nfnet.system.durable_files import rename_durably, write_durably
from nfnet.system.file_locks import is_same_file, try_lock
from nfnet.system.paths import local_path

CACHE_VARIABLE = "NFNETS_CACHE"
"""Environment variable that names the folder of all copies."""

# Each has two pieces of `objects.READ_BYTES` in memory.
_FILES_AT_ONCE = 8
_POLL_SECONDS = 0.2
_UNFINISHED = ".part"
_SMALL_FILE_BYTES_MAX = 16 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedFile:
  """A file that a folder in a bucket has to have.

  Attributes:
    name: name of the object in the folder.
    size_bytes: length of the object.
    sha256: digest of the object in hexadecimal.
  """

  name: str
  size_bytes: int
  sha256: str


def cache_folder() -> pathlib.Path:
  """Returns the folder of all copies, which is created if needed.

  Raises:
    UserError: it cannot be created, or is not a path of this machine.
  """
  named = os.environ.get(CACHE_VARIABLE)
  own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  cache = local_path(CACHE_VARIABLE, named) if named else os.path.join(own, "nfnets")
  folder = pathlib.Path(cache).absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _cannot_be_written(folder, error) from error
  return folder


def folder_of(url: str, index: str) -> pathlib.Path:
  """Returns the cache's folder for a folder in a bucket, in which the copy of one file is.

  That file, such as a manifest, determines the content of all others. So another content gets
  another folder, and equal ones share theirs.

  Args:
    url: address of the folder in a bucket.
    index: name of the file.

  Raises:
    UserError: the file cannot be read, or the cache cannot be written.
  """
  path = BucketPath(url) / index
  try:
    content = path.read_bytes()
  except FileNotFoundError as error:
    raise UserError(f"{path} is not there: give the folder in the bucket that holds it") from error
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  if len(content) > _SMALL_FILE_BYTES_MAX:
    raise UserError(
      f"{path} has {len(content):,} bytes; at most {_SMALL_FILE_BYTES_MAX:,} are read"
    )
  folder = cache_folder() / "data" / hashlib.sha256(content).hexdigest()[:32]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / index).is_file():
      unfinished = folder / f"{index}.{os.getpid()}.tmp"
      write_durably(folder / index, content, unfinished=unfinished)
  except OSError as error:
    raise _cannot_be_written(folder, error) from error
  return folder


def copy_files(url: str, files: Iterable[ExpectedFile], folder: pathlib.Path) -> None:
  """Copies files that are not in the cache yet, with a progress bar, or lines if not on a terminal.

  Args:
    url: address of the folder in a bucket.
    files: files of that folder.
    folder: what `folder_of` has returned.

  Raises:
    UserError: a file is missing in the bucket or is another one there, or the disk is full.
  """
  missing = [file for file in files if not _is_there(folder, file)]
  if not missing:
    return
  _check_room(url, missing, folder)
  stop = threading.Event()
  with tqdm(
    total=sum(file.size_bytes for file in missing),
    desc=f"copying {url}",
    unit="B",
    unit_scale=True,
    disable=None,
  ) as bar:
    copies = map_unordered(
      lambda file: _copy(url, file, folder, bar, stop), missing, _FILES_AT_ONCE
    )
    try:
      for count, _ in enumerate(copies, start=1):
        if bar.disable and count * 10 // len(missing) > (count - 1) * 10 // len(missing):
          files = f"{count} of {format_count(len(missing), 'file')}"
          print(f"copied {files} of {url} to {folder}", file=sys.stderr, flush=True)
    finally:
      stop.set()


class _StoppedError(Exception):
  """Ends a copy because another one has failed."""


def _check_room(url: str, missing: Sequence[ExpectedFile], folder: pathlib.Path) -> None:
  needed = sum(file.size_bytes for file in missing)
  for file in missing:
    try:
      needed -= (folder / f"{file.name}{_UNFINISHED}").stat().st_size
    except OSError:
      continue
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise UserError(
      f"{url} needs {needed / 1e9:,.1f} GB in {folder}, where {free / 1e9:,.1f} GB are free: make "
      f"room, or name a folder on another disk in {CACHE_VARIABLE}"
    )


def _is_there(folder: pathlib.Path, file: ExpectedFile) -> bool:
  try:
    return (folder / file.name).stat().st_size == file.size_bytes
  except OSError:
    return False


def _copy(
  url: str, file: ExpectedFile, folder: pathlib.Path, bar: tqdm, stop: threading.Event
) -> None:
  """Copies one file, or waits until another process has."""
  unfinished = folder / f"{file.name}{_UNFINISHED}"
  try:
    while not stop.is_set():
      descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        is_locked = try_lock(descriptor)
        if _is_there(folder, file):
          # Another process has copied it, under a name that is not used any more.
          if is_locked and is_same_file(descriptor, unfinished):
            unfinished.unlink()
          bar.update(file.size_bytes)
          return
        if is_locked is not False and is_same_file(descriptor, unfinished):
          _fill(url, file, descriptor, bar, stop)
          rename_durably(unfinished, folder / file.name)
          return
      finally:
        os.close(descriptor)
      stop.wait(_POLL_SECONDS)
  except _StoppedError:
    return
  except OSError as error:
    if isinstance(error.filename, str) and error.filename.startswith(objects.SCHEME):
      raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    raise _cannot_be_written(folder, error) from error


def _fill(url: str, file: ExpectedFile, descriptor: int, bar: tqdm, stop: threading.Event) -> None:
  """Completes the copy that a file contains; what is wrong is not kept.

  Raises:
    UserError: the object is another one than expected.
  """
  path = BucketPath(url) / file.name
  digest, start = hashlib.sha256(), 0
  with open(os.dup(descriptor), "r+b") as copy:
    while content := copy.read(objects.READ_BYTES):
      digest.update(content)
      start += len(content)
    size, kept = start, start
    bar.update(start)
    is_short = start < file.size_bytes
    for piece in objects.read_pieces(path.bucket, path.object_name, start) if is_short else ():
      if stop.is_set():
        raise _StoppedError
      copy.write(piece)
      digest.update(piece)
      size += len(piece)
      bar.update(len(piece))
      if size > file.size_bytes:
        break
    copy.flush()
    if size == file.size_bytes and digest.hexdigest() == file.sha256:
      os.fsync(copy.fileno())
      return
    copy.truncate(0)
  bar.update(-size)
  if kept:
    # The part that an earlier process has left may be of another object or damaged.
    os.lseek(descriptor, 0, os.SEEK_SET)
    _fill(url, file, descriptor, bar, stop)
    return
  found = f"SHA-256 {digest.hexdigest()}" if size == file.size_bytes else "another length"
  raise UserError(
    f"{path} has {found} where {file.size_bytes:,} bytes with SHA-256 {file.sha256} are expected: "
    "upload it again"
  )


def _cannot_be_written(folder: pathlib.Path, error: OSError) -> UserError:
  way = "make room there" if error.errno == errno.ENOSPC else "permit that"
  return UserError(
    f"the cache {folder} cannot be written: {error.strerror}; {way}, or name another folder in "
    f"{CACHE_VARIABLE}"
  )
