"""The files in which a run keeps its books: written as long as that is possible, read where sound.

Bookkeeping is never state. Nothing that is wrong with such a file, and no full disk, keeps a run
from resuming or from ending well. What is not a record is set aside in `records_damaged/` of the
workdir, counted, and reported in one line. What cannot be written is reported once, and written
later if there is room again. Only a workdir that no longer belongs to this run ends the run.

Files are named by their workdir and their path inside it.
"""

import contextlib
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from nfnet.errors import format_count
from nfnet.foreign_files.regular_files import open_regular, open_regular_to_write
from train.run.leases.held import check_lease
from train.run.records.workdir import move_aside

DAMAGED_FOLDER = "records_damaged"
"""Folder in the workdir into which damaged records are moved."""

# The longest line that a run writes, the message of an error, has a few kilobytes.
_LINE_BYTES_MAX = 1 << 20
# Records of several thousand steps.
_UNWRITTEN_BYTES_MAX = 1 << 20

Record = dict[str, Any]
Parse = Callable[[Any], Record | None]
"""Function that returns the record in a JSON value, or None if it is not one."""

_reported: set[tuple[pathlib.Path, int | None]] = set()


class RecordFile:
  """Appends to a file; what cannot be written stays in memory and is tried again with the next."""

  def __init__(self, workdir: pathlib.Path, name: str):
    """Opens the file, after moving aside whatever is in its place that is not a file.

    Args:
      workdir: folder of the run.
      name: path of the file in the workdir, which `make_place` has prepared.
    """
    self._workdir, self._name = workdir, name
    self._file: Any = None
    self._unwritten = bytearray()
    with _reporting(workdir, name):
      self._open()

  def append(self, record: bytes) -> None:
    """Keeps a whole record for the next `flush`."""
    self._unwritten += record

  def flush(self, *, sync: bool = False) -> None:
    """Writes what has been appended.

    Args:
      sync: whether to wait until it is on the disk.
    """
    with _reporting(self._workdir, self._name):
      self._write()
      if sync:
        os.fsync(self._file.fileno())
    if len(self._unwritten) > _UNWRITTEN_BYTES_MAX:
      self._unwritten.clear()

  def close(self) -> None:
    """Writes what is left and closes the file."""
    try:
      self.flush()
    finally:
      # Every write was reported, and nothing is left to be written.
      if self._file is not None:
        with contextlib.suppress(OSError):
          self._file.close()

  def _open(self) -> None:
    if self._file is None:
      self._file = open_regular_to_write(self._workdir / self._name, "ab", buffering=0)

  def _write(self) -> None:
    self._open()
    size = self._file.seek(0, os.SEEK_END)
    written = 0
    try:
      while written < len(self._unwritten):
        written += self._file.write(self._unwritten[written:])
    except OSError:
      # A part of a record would spoil the one after it.
      with contextlib.suppress(OSError):
        self._file.truncate(size)
      raise
    self._unwritten.clear()


def report_unwritable(workdir: pathlib.Path, name: str, error: OSError) -> None:
  """Says that the run goes on though its books cannot be kept; once for each kind of error."""
  if (workdir, error.errno) not in _reported:
    _reported.add((workdir, error.errno))
    logging.warning(
      "%s cannot be written: %s; the run goes on without it", workdir / name, error.strerror
    )


def make_place(workdir: pathlib.Path, name: str, *, folder: bool = False) -> None:
  """Moves aside whatever is in the place of a file or folder and is not one that can be used.

  Args:
    workdir: folder of the run.
    name: path in the workdir.
    folder: whether a folder belongs there rather than a file. It is created.
  """
  path = workdir / name
  with _reporting(workdir, name):
    if not _is_usable(path, folder):
      place = move_aside(path, _damaged_place(workdir, name).parent)
      logging.warning("%s cannot be used as it is; moved to %s", path, place)
    if folder:
      path.mkdir(exist_ok=True)


def open_lines(
  workdir: pathlib.Path, name: str, parse: Parse, keep: Callable[[Record], bool] | None = None
) -> RecordFile:
  """Opens a file of JSON lines to append to it, and sets lines aside that are not records.

  Args:
    workdir: folder of the run.
    name: path of the file in the workdir.
    parse: function that recognizes a record.
    keep: function that returns whether a record is kept; None keeps all. Others are deleted.
  """
  make_place(workdir, name)
  with _reporting(workdir, name):
    _rewrite(workdir, name, parse, keep)
  return RecordFile(workdir, name)


def read_lines(path: pathlib.Path, parse: Parse) -> list[Record]:
  """Returns the records of a file of JSON lines, and says how many lines are not records.

  A last line that the end of the process has cut off is left out.

  Args:
    path: path of the file, which may be growing.
    parse: function that recognizes a record.

  Raises:
    OSError: the file cannot be read.
  """
  records, damaged = [], 0
  for line in _lines(path, parse):
    if line.record is not None:
      records.append(line.record)
    else:
      damaged += line.is_first
  if damaged:
    logging.warning("%s: left out what is not a record, %s", path, format_count(damaged, "line"))
  return records


def parse_line(line: bytes | str, parse: Parse) -> Record | None:
  """Returns the record in a line of JSON, or None if it holds none."""
  try:
    return parse(json.loads(line))
  # Text that is not UTF-8 and numbers of thousands of digits are ValueErrors too.
  except (ValueError, RecursionError):
    return None


def set_aside(workdir: pathlib.Path, name: str, content: bytes) -> None:
  """Appends damaged content of a file to the file of the same name in `DAMAGED_FOLDER`.

  Raises:
    OSError: it cannot be written.
  """
  with open_regular_to_write(_damaged_place(workdir, name), "ab") as file:
    file.write(content)


class _Line(NamedTuple):
  """A line of a file, or a part of a line that is too long for a record.

  Attributes:
    content: bytes with the line end.
    record: the record in it, or None.
    is_first: whether it begins a line.
  """

  content: bytes
  record: Record | None
  is_first: bool


def _lines(path: pathlib.Path, parse: Parse) -> Iterator[_Line]:
  """Yields the lines of a file; the beginning of a record that was cut off at the end is not."""
  with open_regular(path) as file:
    is_first = True
    while content := file.readline(_LINE_BYTES_MAX):
      record = parse_line(content, parse) if is_first else None
      is_whole = content.endswith(b"\n")
      if record is None and is_first and not is_whole and _is_cut(content):
        return
      yield _Line(content, record, is_first)
      is_first = is_whole


def _is_cut(content: bytes) -> bool:
  return content.startswith(b"{") and len(content) < _LINE_BYTES_MAX


def _rewrite(
  workdir: pathlib.Path, name: str, parse: Parse, keep: Callable[[Record], bool] | None
) -> None:
  """Deletes the records that are not to be kept, and sets aside the lines that are not records."""
  path = workdir / name
  if not path.exists():
    return
  unfinished = path.with_suffix(".tmp")
  make_place(workdir, str(pathlib.Path(name).with_suffix(".tmp")))
  # A link in its place would be followed to somebody else's file.
  unfinished.unlink(missing_ok=True)
  try:
    with contextlib.ExitStack() as opened:
      file = opened.enter_context(open_regular_to_write(unfinished, "wb"))
      damaged, aside = 0, None
      for line in _lines(path, parse):
        if line.record is None:
          damaged += line.is_first
          if aside is None:
            place = _damaged_place(workdir, name)
            aside = opened.enter_context(open_regular_to_write(place, "ab"))
          aside.write(line.content)
        elif keep is None or keep(line.record):
          # All that a record at the end may lack is its line end.
          file.write(line.content.removesuffix(b"\n") + b"\n")
      size = file.tell()
      file.flush()
      os.fsync(file.fileno())
    if size != path.stat().st_size:
      unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)
  if damaged:
    logging.warning(
      "%s: set aside what is not a record, %s, in %s",
      path,
      format_count(damaged, "line"),
      DAMAGED_FOLDER,
    )


def _is_usable(path: pathlib.Path, folder: bool) -> bool:
  """Returns whether a file or folder can be read and written, or is absent."""
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    return True
  except OSError:
    return False
  is_right = stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)
  return is_right and os.access(path, os.R_OK | os.W_OK)


def _damaged_place(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the path for damaged content of a file, and creates its folder."""
  place = workdir / DAMAGED_FOLDER / name
  place.parent.mkdir(parents=True, exist_ok=True)
  return place


@contextlib.contextmanager
def _reporting(workdir: pathlib.Path, name: str) -> Iterator[None]:
  """Reports an error of the file system and goes on.

  Raises:
    UserError: the workdir is no longer this run's.
  """
  try:
    check_lease(workdir)
    yield
  except OSError as error:
    report_unwritable(workdir, name, error)
