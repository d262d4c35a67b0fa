"""The manifest of a prepared data set: its classes, its splits, and the record files of each.

A data set is a folder:

    manifest.json                             classes; records, bytes and SHA-256 of each file
    images_in_two_splits.json                 pairs of names, if there are any; nothing reads it
    repeated_images.json                      groups of names, if there are any; nothing reads it
    train-00000-of-00002.array_record         records, in an order shuffled once and for all
    train-00001-of-00002.array_record
    validation-00000-of-00001.array_record

`train.data.record_files` reads and verifies the record files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from nfnet.errors import UserError, format_count, quoted
from nfnet.foreign_files.json_text import check_structure, read_json
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.durable_files import write_durably
from train.data.preparation.image_sizes import ImageSizes

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
IMAGES_IN_TWO_SPLITS_NAME = "images_in_two_splits.json"
REPEATED_IMAGES_NAME = "repeated_images.json"
RECORD_FILE_STRUCTURE = {"file": str, "records": int, "size_bytes": int, "sha256": str}
_STRUCTURE = {
  "class_names": [str],
  "labels_per_record_max": range(2**16),
  "splits": {str: {"records": int, "shards": [RECORD_FILE_STRUCTURE]}},
  "skipped_images": [str],
  "images_in_two_splits?": int,
  "repeated_images?": int,
  "repeated_in_other_classes?": int,
  "image_sizes?": {str: {field.name: [int] for field in dataclasses.fields(ImageSizes)}},
}
# What manifests of earlier versions do not have.
_OPTIONAL = tuple(name.removesuffix("?") for name in _STRUCTURE if name.endswith("?"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordFile:
  """One ArrayRecord file of a data set.

  Attributes:
    file: name in the data set's folder.
    records: number of records.
    size_bytes: length of the file.
    sha256: digest of the file in hexadecimal.
  """

  file: str
  records: int
  size_bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """One split of a data set.

  Attributes:
    records: number of records in all files together.
    record_files: the files, in the order of their records; "shards" in manifest.json.
  """

  records: int
  record_files: tuple[RecordFile, ...]

  @property
  def size_bytes(self) -> int:
    """Length of all files together."""
    return sum(record_file.size_bytes for record_file in self.record_files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """The content of a data set.

  Attributes:
    class_names: names of the classes, by class index.
    labels_per_record_max: largest number of labels of a record.
    splits: splits by name, usually "train" and "validation".
    skipped_images: files of the source that could not be decoded and were left out on request.
    images_in_two_splits: number of pairs of images of two splits that have the same pixels, which
      are in `IMAGES_IN_TWO_SPLITS_NAME`; None if nobody has compared them.
    repeated_images: number of images that have the same pixels as another image of their split,
      of which one may stay; they are in `REPEATED_IMAGES_NAME`. None if nobody has compared them.
    repeated_in_other_classes: number of these whose labels differ from those of the other image.
    image_sizes: sizes of the images by split; None if nobody has noted them.
    format_version: version of the records and of manifest.json.
  """

  class_names: tuple[str, ...]
  labels_per_record_max: int
  splits: dict[str, Split]
  skipped_images: tuple[str, ...] = ()
  images_in_two_splits: int | None = None
  repeated_images: int | None = None
  repeated_in_other_classes: int | None = None
  image_sizes: dict[str, ImageSizes] | None = None
  format_version: int = FORMAT_VERSION

  def allows(self, labels: Sequence[int]) -> bool:
    """Returns whether a record may have these labels: classes that exist, and not too many."""
    return 1 <= len(labels) <= self.labels_per_record_max and all(
      0 <= label < len(self.class_names) for label in labels
    )


def save_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
  """Writes manifest.json; a reader sees no file or the whole file."""
  text = json.dumps(_manifest_to_json(manifest), indent=1)
  write_durably(pathlib.Path(folder, MANIFEST_NAME), f"{text}\n")


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
  """Reads manifest.json and checks that it agrees with itself.

  Raises:
    UserError: there is no manifest, or it is damaged or of another version.
  """
  path = pathlib.Path(folder, MANIFEST_NAME)
  if _is_missing(path.parent):
    raise UserError(f"data folder {path.parent} does not exist; make it with train.prepare_data")
  if _is_missing(path):
    raise UserError(
      f"data folder {path.parent} has no {MANIFEST_NAME}: train.prepare_data writes it last, so "
      "either this is not a data set or the run that made it did not finish"
    )
  fields = read_json(path)
  version = fields.get("format_version") if isinstance(fields, dict) else None
  if version != FORMAT_VERSION:
    raise UserError(
      f"{path} has format_version {quoted(version)}; this program reads {FORMAT_VERSION}"
    )
  try:
    check_structure(fields, _STRUCTURE)
  except ValueError as error:
    raise UserError(f"{path} is damaged: {error}") from error
  manifest = _manifest_from_json(fields)
  for name, split in manifest.splits.items():
    counted = sum(record_file.records for record_file in split.record_files)
    if counted != split.records:
      raise UserError(
        f"{path}: split {quoted(name)} has {format_count(split.records, 'record')}, but "
        f"its record files have {counted:,}"
      )
    for record_file in split.record_files:
      if record_file.file in ("", "..") or "/" in record_file.file:
        raise UserError(f"{path}: {quoted(record_file.file)} is not the name of a file beside it")
      # Otherwise the order of an epoch could take any amount of memory.
      if record_file.records > record_file.size_bytes:
        raise UserError(
          f"{path}: {quoted(record_file.file)} has {format_count(record_file.records, 'record')} "
          f"in {format_count(record_file.size_bytes, 'byte')}"
        )
  return manifest


def _is_missing(path: pathlib.Path) -> bool:
  """Returns whether nothing is there; what cannot be looked at is not missing."""
  try:
    path.stat()
  except (FileNotFoundError, NotADirectoryError):
    return True
  except OSError:
    return False
  return False


def check_file_sizes(folder: str | os.PathLike[str], split: Split) -> None:
  """Raises UserError unless each record file of a split is there with its full length."""
  for record_file in split.record_files:
    path = pathlib.Path(folder, record_file.file)
    if not os.path.isfile(path):
      raise UserError(f"record file {path} is in {MANIFEST_NAME} but missing")
    size_bytes = path.stat().st_size
    if size_bytes != record_file.size_bytes:
      raise UserError(
        f"record file {path} has {size_bytes} bytes where {MANIFEST_NAME} has "
        f"{record_file.size_bytes}: copy it again or prepare the data again"
      )


def describe_file(folder: str | os.PathLike[str], file: str, records: int) -> RecordFile:
  """Measures and hashes a finished record file.

  Args:
    folder: folder of the data set.
    file: name of the file in it.
    records: number of records that were written to it.
  """
  path = pathlib.Path(folder, file)
  with open_regular(path) as opened:
    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
  return RecordFile(file=file, records=records, size_bytes=path.stat().st_size, sha256=sha256)


def record_file_from_json(fields: dict[str, Any]) -> RecordFile:
  """Returns the record file from fields that have `RECORD_FILE_STRUCTURE`; others are ignored."""
  return RecordFile(**{name: fields[name] for name in RECORD_FILE_STRUCTURE})


def _manifest_to_json(manifest: Manifest) -> dict[str, Any]:
  fields = dataclasses.asdict(manifest)
  for name in _OPTIONAL:
    if fields[name] is None:
      del fields[name]
  for split in fields["splits"].values():
    split["shards"] = split.pop("record_files")
  return fields


def _image_sizes_from_json(fields: dict[str, Any] | None) -> dict[str, ImageSizes] | None:
  if fields is None:
    return None
  names = [field.name for field in dataclasses.fields(ImageSizes)]
  return {
    split: ImageSizes(**{name: tuple(sizes[name]) for name in names})
    for split, sizes in fields.items()
  }


def _manifest_from_json(fields: dict[str, Any]) -> Manifest:
  return Manifest(
    class_names=tuple(fields["class_names"]),
    labels_per_record_max=fields["labels_per_record_max"],
    splits={
      name: Split(
        records=split["records"],
        record_files=tuple(record_file_from_json(file) for file in split["shards"]),
      )
      for name, split in fields["splits"].items()
    },
    skipped_images=tuple(fields["skipped_images"]),
    images_in_two_splits=fields.get("images_in_two_splits"),
    repeated_images=fields.get("repeated_images"),
    repeated_in_other_classes=fields.get("repeated_in_other_classes"),
    image_sizes=_image_sizes_from_json(fields.get("image_sizes")),
  )
