"""Keeps what an unfinished data set has so far in its folder `partial/`, for the same command.

The folder holds the plan, which says what the data set will be; for each finished record file a
note; the record file being written; and a lock, so that two commands do not write one data set.
A note that is damaged, or whose record file is, counts as absent. Once the manifest is
written, all of this is removed, the plan last, so what remains at any time says how to go on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nfnet.errors import InUseError, UserError
from nfnet.foreign_files.json_text import check_structure, parse_json
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.durable_files import rename_durably, sync, write_durably
from nfnet.system.file_locks import is_same_file, try_lock
from train.data.manifest import (
  IMAGES_IN_TWO_SPLITS_NAME,
  MANIFEST_NAME,
  RECORD_FILE_STRUCTURE,
  REPEATED_IMAGES_NAME,
  RecordFile,
  record_file_from_json,
)
from train.data.preparation.file_tree import is_of_the_system
from train.data.preparation.image_sizes import SIDES_BYTES
from train.data.preparation.same_pixels import DIGEST_BYTES

_PARTIAL = "partial"
_PLAN = "plan.json"
_LOCK = "lock"
_NOTE_STRUCTURE = {
  "plan_sha256": str,
  "shard": RECORD_FILE_STRUCTURE,
  "skipped": [str],
  "pixel_digests": str,
  "sides": str,
}
# What may lie beside the record files before the manifest does.
_UNFINISHED = frozenset(
  (
    IMAGES_IN_TWO_SPLITS_NAME,
    REPEATED_IMAGES_NAME,
    *(
      pathlib.Path(name).with_suffix(".tmp").name
      for name in (IMAGES_IN_TWO_SPLITS_NAME, REPEATED_IMAGES_NAME, MANIFEST_NAME)
    ),
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
  """Describes a finished record file.

  Attributes:
    record_file: its entry for the manifest.
    skipped: names of images that were left out.
    digests: digest of each image's pixels, in order; zeros where one was left out.
    sides: height and width of each image, in order; zeros where one was left out.
  """

  record_file: RecordFile
  skipped: tuple[str, ...]
  digests: bytes
  sides: bytes


@contextlib.contextmanager
def claim(folder: pathlib.Path, plan: Mapping[str, Any]) -> Iterator["Progress"]:
  """Makes this process the only writer of a folder that is new or holds the beginning of this plan.

  Args:
    folder: folder of the data set.
    plan: description of the data set, as JSON can hold it; "shards" has the names of the record
      files by split.

  Raises:
    InUseError: another process is writing to the folder.
    UserError: the folder holds something else or a finished data set.
  """
  partial = folder / _PARTIAL
  finished = UserError(f"{folder} already holds a finished data set: choose another --out")
  folder.mkdir(parents=True, exist_ok=True)
  found = set(os.listdir(folder))
  if _PARTIAL not in found:
    if MANIFEST_NAME in found:
      raise finished
    _refuse_foreign(found, folder)
    partial.mkdir(exist_ok=True)
  with _lock(partial / _LOCK, folder):
    progress = Progress(folder, plan)
    found = set(os.listdir(folder))
    planned = _read_fields(partial / _PLAN)
    if MANIFEST_NAME in found:
      if not planned:
        progress.remove()
      if planned != plan:
        raise finished
    else:
      notes = [_read_fields(path) for path in partial.glob("*.json")] if not planned else []
      if planned not in ({}, plan) or any(map(progress.is_foreign, notes)):
        raise UserError(
          f"{folder} holds the beginning of a data set of another source or other options: delete "
          "it or choose another --out"
        )
      files = {file for files in plan["shards"].values() for file in files}
      _refuse_foreign(found - files - {_PARTIAL} - _UNFINISHED, folder)
      if not planned:
        own = {path.name for path in progress.own_paths()}
        _refuse_foreign(set(os.listdir(partial)) - own, partial)
        progress.write_plan()
    yield progress


class Progress:
  """The unfinished data set in a folder, of which this process is the only writer."""

  def __init__(self, folder: pathlib.Path, plan: Mapping[str, Any]):
    self._folder = folder
    self._partial = folder / _PARTIAL
    self._plan = plan
    self._plan_text = json.dumps(plan)
    self._plan_sha256 = hashlib.sha256(self._plan_text.encode()).hexdigest()

  def unfinished_path(self, file: str) -> pathlib.Path:
    """Returns where a record file is written, in place of what a kill may have left there."""
    path = self._partial / file
    path.unlink(missing_ok=True)
    return path

  def publish(self, file: str) -> None:
    """Moves a record file that has been written to where the data set has it."""
    sync(self._partial / file)
    rename_durably(self._partial / file, self._folder / file)

  def save_note(self, note: Note) -> None:
    """Notes that a record file is finished."""
    fields = {
      "plan_sha256": self._plan_sha256,
      "shard": dataclasses.asdict(note.record_file),
      "skipped": note.skipped,
      "pixel_digests": note.digests.hex(),
      "sides": note.sides.hex(),
    }
    write_durably(self._note_path(note.record_file.file), json.dumps(fields))

  def load_note(self, file: str, images: int) -> Note | None:
    """Returns the note of a record file; None if there is none or the file must be written again.

    Args:
      file: name of the record file.
      images: number of images of the source that were meant for it.
    """
    path = self._note_path(file)
    fields = _read_fields(path)
    try:
      check_structure(fields, _NOTE_STRUCTURE)
      note = Note(
        record_file=record_file_from_json(fields["shard"]),
        skipped=tuple(fields["skipped"]),
        digests=bytes.fromhex(fields["pixel_digests"]),
        sides=bytes.fromhex(fields["sides"]),
      )
      size_bytes = (self._folder / file).stat().st_size
    except (ValueError, OSError):
      note = None
    if (
      note is None
      or self.is_foreign(fields)
      or note.record_file.file != file
      or note.record_file.size_bytes != size_bytes
      or note.record_file.records + len(note.skipped) != images
      or len(note.digests) != images * DIGEST_BYTES
      or len(note.sides) != images * SIDES_BYTES
    ):
      if path.exists():
        print(f"{file} or its note is damaged and is written again", file=sys.stderr)
      return None
    return note

  def discard_note(self, file: str) -> None:
    """Makes the same command write a record file again."""
    self._note_path(file).unlink(missing_ok=True)

  def remove(self) -> None:
    """Removes what only an unfinished data set needs; foreign files stay."""
    for path in self.own_paths():
      path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      self._partial.rmdir()
    sync(self._folder)

  def is_finished(self) -> bool:
    """Returns whether the data set has its manifest."""
    return (self._folder / MANIFEST_NAME).exists()

  def is_foreign(self, fields: Mapping[str, Any]) -> bool:
    """Returns whether the fields of a note belong to another plan."""
    return fields.get("plan_sha256", self._plan_sha256) != self._plan_sha256

  def write_plan(self) -> None:
    """Says what this data set will be."""
    write_durably(self._partial / _PLAN, self._plan_text)
    sync(self._folder)

  def own_paths(self) -> Iterator[pathlib.Path]:
    """Yields every path that this data set may have in `partial/`: notes first, the plan last."""
    for files in self._plan["shards"].values():
      for file in files:
        note_path = self._note_path(file)
        yield from (self._partial / file, note_path, note_path.with_suffix(".tmp"))
    plan_path = self._partial / _PLAN
    yield from (plan_path.with_suffix(".tmp"), plan_path, self._partial / _LOCK)

  def _note_path(self, file: str) -> pathlib.Path:
    return self._partial / f"{file}.json"


def _refuse_foreign(names: Iterable[str], folder: pathlib.Path) -> None:
  if names := sorted(name for name in names if not is_of_the_system(name)):
    raise UserError(f"{folder} holds other files, such as {names[0]}: choose another --out")


def _read_fields(path: pathlib.Path) -> dict[str, Any]:
  """Returns the fields of a JSON file; none if there is no such file or it is damaged."""
  try:
    # Notes name each image that was left out, so they have no size that none exceeds.
    with open_regular(path) as file:
      fields = parse_json(file.read())
  except (OSError, ValueError):
    return {}
  return fields if isinstance(fields, dict) else {}


@contextlib.contextmanager
def _lock(path: pathlib.Path, folder: pathlib.Path) -> Iterator[None]:
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  try:
    # On a file system without locks, two commands at once are not noticed.
    if try_lock(descriptor) is False:
      raise InUseError(f"another process is writing {folder}: wait for it, or choose another --out")
    # The process that had the lock before may have finished, and removed the file with its folder.
    if not is_same_file(descriptor, path):
      raise InUseError(f"another process was writing {folder}: give the same command again")
    yield
  finally:
    os.close(descriptor)
