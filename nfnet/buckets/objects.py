"""Reads, writes, lists and deletes objects of buckets, and raises what files raise.

TensorStore finds the credentials as Google's other clients do, retries what is worth it, and sends
requests to the address in `TENSORSTORE_GCS_HTTP_URL` if that is set.
"""

import contextlib
import errno
import functools
import re
import sys
from collections.abc import Iterator
from typing import Any

import tensorstore as ts

from nfnet.errors import short_text

SCHEME = "gs://"
READ_BYTES = 16 * 2**20
"""Length of the pieces in which large objects are read."""
PATIENCE_SECONDS = 20
"""Time after which waiting is reported. TensorStore 0.1.86 repeats a request that gets no answer 32
times, which takes 15 minutes."""

NO_OBJECT = ts.KvStore.open("memory://").result().read("absent").result().stamp.generation
"""Generation of an object that does not exist."""

_NO_SUCH_OBJECT = "there is no such object; look at its name and the bucket's"

_ERRNO_OF_STATUS = {
  "NOT_FOUND": errno.ENOENT,
  "PERMISSION_DENIED": errno.EACCES,
  "UNAUTHENTICATED": errno.EACCES,
}


def split(url: str) -> tuple[str, str]:
  """Returns the bucket and the name of an object or folder, without slashes around it."""
  bucket, _, name = url.removeprefix(SCHEME).partition("/")
  return bucket, name.strip("/")


def read(bucket: str, name: str) -> tuple[bytes, bytes]:
  """Returns an object's content and generation.

  Raises:
    FileNotFoundError: there is no such object.
    OSError: the bucket cannot be read.
  """
  with _as_os_error(bucket, name):
    found = _result(bucket, _store(bucket).read(name))
    if found.state != "value":
      raise FileNotFoundError(errno.ENOENT, _NO_SUCH_OBJECT, url(bucket, name))
    return found.value, found.stamp.generation


def read_pieces(bucket: str, name: str, start: int = 0) -> Iterator[bytes]:
  """Yields an object piece by piece, reading one ahead.

  Args:
    bucket: name of the bucket.
    name: name of the object.
    start: number of bytes to leave out at its beginning.

  Raises:
    FileNotFoundError: there is no such object.
    OSError: the bucket cannot be read.
  """
  store = _store(bucket)

  def begin(position: int) -> ts.Future:
    return store.read(name, byte_range=slice(position, position + READ_BYTES))

  with _as_os_error(bucket, name):
    reading = begin(start)
    while True:
      ahead = begin(start + READ_BYTES)
      try:
        found = _result(bucket, reading)
      except ValueError as error:
        # The object ends before the piece does.
        if _status(error) != "OUT_OF_RANGE":
          raise
        yield _rest(bucket, name, start)
        return
      if found.state != "value":
        raise FileNotFoundError(errno.ENOENT, _NO_SUCH_OBJECT, url(bucket, name))
      yield found.value
      start, reading = start + READ_BYTES, ahead


def _rest(bucket: str, name: str, start: int) -> bytes:
  try:
    return _result(bucket, _store(bucket).read(name, byte_range=slice(start, None))).value
  except ValueError as error:
    if _status(error) != "OUT_OF_RANGE":
      raise
    return b""


def write(bucket: str, name: str, content: bytes, *, if_generation: bytes | None = None) -> bytes:
  """Writes an object as a whole: readers see the old or the new one.

  Args:
    bucket: name of the bucket.
    name: name of the object.
    content: its new content.
    if_generation: generation that the object must have, `NO_OBJECT` if it must not exist; None
      replaces any.

  Returns:
    The new generation.

  Raises:
    FileExistsError: the object has another generation; it is unchanged.
    OSError: the bucket cannot be written.
  """
  with _as_os_error(bucket, name):
    stamp = _result(bucket, _store(bucket).write(name, content, if_equal=if_generation))
  if not stamp.generation:
    raise FileExistsError(errno.EEXIST, "another process has written it", url(bucket, name))
  return stamp.generation


def delete(bucket: str, name: str, *, if_generation: bytes | None = None) -> None:
  """Deletes an object if it is there and, if a generation is given, has that one."""
  with _as_os_error(bucket, name):
    _result(bucket, _store(bucket).write(name, None, if_equal=if_generation))


def exists(bucket: str, name: str) -> bool:
  """Returns whether there is an object of this name."""
  with _as_os_error(bucket, name):
    # No sensible name has a control character, so that no other object is in this range.
    return name.encode() in _list(bucket, ts.KvStore.KeyRange(name, f"{name} "), 0)


def names(bucket: str, folder: str) -> list[str]:
  """Returns the names of all objects in a folder, without the folder's, in order.

  Args:
    bucket: name of the bucket.
    folder: name of the folder, without slashes around it; empty for the whole bucket.
  """
  length = len(f"{folder}/".encode()) if folder else 0
  with _as_os_error(bucket, folder):
    found = _list(bucket, _range(folder), length)
  return sorted(name.decode(errors="surrogateescape") for name in found)


def delete_all(bucket: str, folder: str) -> None:
  """Deletes all objects in a folder."""
  with _as_os_error(bucket, folder):
    _result(bucket, _store(bucket).delete_range(_range(folder)))


def error_number(error: BaseException) -> int:
  """Returns the error number (errno) that a file would have for an error of TensorStore."""
  return _ERRNO_OF_STATUS.get(_status(error), errno.EIO)


def url(bucket: str, name: str) -> str:
  """Returns the address of an object."""
  return f"{SCHEME}{bucket}/{name}"


@functools.cache
def _context() -> ts.Context:
  """Returns what all stores share: connections, credentials and limits."""
  return ts.Context()


def _store(bucket: str) -> ts.KvStore:
  return ts.KvStore.open({"driver": "gcs", "bucket": bucket}, context=_context()).result()


def _result(bucket: str, future: ts.Future) -> Any:
  """Returns the result of a request; says so if that takes long."""
  try:
    return future.result(timeout=PATIENCE_SECONDS)
  except TimeoutError:
    _say_that_it_waits(bucket)
    return future.result()


@functools.cache
def _say_that_it_waits(bucket: str) -> None:
  print(
    f"still waiting for {SCHEME}{bucket} after {PATIENCE_SECONDS} seconds; requests that fail are "
    "repeated for a quarter of an hour",
    file=sys.stderr,
    flush=True,
  )


def _list(bucket: str, key_range: ts.KvStore.KeyRange, strip_prefix_length: int) -> list[bytes]:
  """Returns the names of the objects in a range.

  Where TensorStore (0.1.86) may not list, it says that nothing is there. Reading then fails too,
  since Google Cloud Storage tells only those who may list that an object is missing.
  """
  store = _store(bucket)
  found = _result(bucket, store.list(key_range, strip_prefix_length=strip_prefix_length))
  if not found:
    _result(bucket, store.read(f"{key_range.inclusive_min.decode()}.nothing"))
  return found


def _range(folder: str) -> ts.KvStore.KeyRange:
  # The digit 0 follows the slash in ASCII.
  return ts.KvStore.KeyRange(f"{folder}/", f"{folder}0") if folder else ts.KvStore.KeyRange()


def _status(error: BaseException) -> str:
  """Returns the name of the status that an error of TensorStore begins with."""
  match = re.match(r"[A-Z_]+(?=:)", str(error))
  return match[0] if match else ""


@contextlib.contextmanager
def _as_os_error(bucket: str, name: str) -> Iterator[None]:
  """Turns errors of TensorStore, which are ValueErrors, into those that files raise."""
  try:
    yield
  except ValueError as error:
    number = error_number(error)
    # HTTP bodies may have pages.
    text = re.sub(r" *\[http_response_body=.*?'\](?= \[|$)", "", str(error), flags=re.DOTALL)
    if number == errno.ENOENT:
      # That an object is missing is not an error to TensorStore.
      text = f"there is no bucket {bucket}; look at its name, or make it"
    elif number == errno.EACCES:
      text += (
        " (log in with `gcloud auth application-default login`, or give this machine's service"
      )
      text += " account access)"
    raise OSError(number, short_text(ValueError(text)), url(bucket, name)) from error
