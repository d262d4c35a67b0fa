"""What `prepare_data` writes and training reads: records in ArrayRecord shards, and a manifest.

A data set is a folder:

    manifest.json                             class names; records, bytes and SHA-256 of each shard
    train-00000-of-00002.array_record         records, in an order shuffled once
    train-00001-of-00002.array_record
    validation-00000-of-00001.array_record

A record is a msgpack map: `id` (its index in its split, counted over the shards), `labels` (a list
of class indices) and `image` (an image file's bytes).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import msgpack
from array_record.python import array_record_module

from nfnet.errors import UserError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

# Random access decompresses a whole group, so a group is one record; images are compressed
# already. Measured: 7 us a read, 26 us with the default compression; about 100 bytes a record.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Without them a reader keeps 16 MB and threads of its own for reading ahead.
_RANDOM_ACCESS_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_RANDOM_ACCESS_BUFFER_BYTES = 32768
_RECORDS_PER_READ = 1024


class BadRecordError(Exception):
  """Bytes that are no record."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One labeled image.

  Attributes:
    id: index in its split, counted over the shards.
    labels: class indices, at least one.
    image: bytes of a JPEG, PNG or WebP file.
  """

  id: int
  labels: tuple[int, ...]
  image: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One ArrayRecord file: its name in the folder, its records, its length, its SHA-256 in hex."""

  file: str
  records: int
  size_bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """The shards of one split, in order, and the sum of their records."""

  records: int
  shards: tuple[Shard, ...]

  @property
  def size_bytes(self) -> int:
    """Bytes of all shards."""
    return sum(shard.size_bytes for shard in self.shards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a data set consists of.

  Attributes:
    class_names: position i names class i.
    labels_per_record_max: the most labels that any record has.
    splits: by name, "train" and "validation" as a rule.
    skipped_images: files of the source that could not be decoded and were left out on request.
    format_version: of the records and of this file.
  """

  class_names: tuple[str, ...]
  labels_per_record_max: int
  splits: dict[str, Split]
  skipped_images: tuple[str, ...] = ()
  format_version: int = FORMAT_VERSION


def encode_record(record: Record) -> bytes:
  """Returns the bytes that are stored."""
  return msgpack.packb({"id": record.id, "labels": list(record.labels), "image": record.image})


def decode_record(stored: bytes) -> Record:
  """Reads what `encode_record` made; raises BadRecordError with the reason."""
  try:
    fields = msgpack.unpackb(stored)
  # msgpack promises no common base class for what damaged bytes raise.
  except Exception as error:
    raise BadRecordError(f"not msgpack: {error}") from error
  match fields:
    case {"id": int(number), "labels": [*labels], "image": bytes(image)} if labels and all(
      isinstance(label, int) for label in labels
    ):
      return Record(number, tuple(labels), image)
  raise BadRecordError("not a map of id, labels and image")


def save_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
  """Writes manifest.json; who looks sees none or the whole of it."""
  path = pathlib.Path(folder, MANIFEST_NAME)
  unfinished = path.with_suffix(".tmp")
  with unfinished.open("w") as file:
    json.dump(dataclasses.asdict(manifest), file, indent=1)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(path)


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
  """Reads manifest.json and checks that it agrees with itself; raises UserError."""
  path = pathlib.Path(folder, MANIFEST_NAME)
  if not path.parent.is_dir():
    raise UserError(f"data folder {path.parent} does not exist; make it with train.prepare_data")
  if not path.exists():
    raise UserError(
      f"data folder {path.parent} has no {MANIFEST_NAME}: train.prepare_data writes it last, so "
      "either this is no data set or the run that made it did not finish"
    )
  try:
    fields = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  version = fields.get("format_version") if isinstance(fields, dict) else None
  if version != FORMAT_VERSION:
    raise UserError(f"{path} has format_version {version!r}; this program reads {FORMAT_VERSION}")
  try:
    manifest = _manifest_from_json(fields)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error!r}") from error
  for name, split in manifest.splits.items():
    counted = sum(shard.records for shard in split.shards)
    if counted != split.records:
      raise UserError(
        f"{path}: split {name!r} has {split.records} records, its shards together {counted}"
      )
  return manifest


def check_shard_sizes(folder: str | os.PathLike[str], split: Split) -> None:
  """Raises UserError unless each shard is there with its full length."""
  for shard in split.shards:
    path = pathlib.Path(folder, shard.file)
    if not path.is_file():
      raise UserError(f"record file {path} is in {MANIFEST_NAME} but missing")
    size_bytes = path.stat().st_size
    if size_bytes != shard.size_bytes:
      raise UserError(
        f"record file {path} has {size_bytes} bytes where {MANIFEST_NAME} has "
        f"{shard.size_bytes}: copy it again or prepare the data again"
      )


def open_shard(
  folder: str | os.PathLike[str], shard: Shard
) -> array_record_module.ArrayRecordReader:
  """Opens a shard for random access; raises UserError unless it has the manifest's records."""
  path = pathlib.Path(folder, shard.file)
  try:
    reader = array_record_module.ArrayRecordReader(
      str(path),
      options=_RANDOM_ACCESS_OPTIONS,
      file_reader_buffer_size=_RANDOM_ACCESS_BUFFER_BYTES,
    )
    records = reader.num_records()
  # The reader raises RuntimeError, ValueError or IndexError, by the kind of damage.
  except Exception as error:
    raise UserError(f"record file {path} cannot be read: {error}") from error
  if records != shard.records:
    raise UserError(
      f"record file {path} has {records} records where {MANIFEST_NAME} has {shard.records}"
    )
  return reader


def describe_shard(folder: str | os.PathLike[str], file: str, records: int) -> Shard:
  """Measures and hashes a finished record file."""
  path = pathlib.Path(folder, file)
  with path.open("rb") as opened:
    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
  return Shard(file=file, records=records, size_bytes=path.stat().st_size, sha256=sha256)


def shard_from_json(fields: dict) -> Shard:
  """Reads what `dataclasses.asdict` made of a shard; raises KeyError, TypeError or ValueError."""
  return Shard(
    file=str(fields["file"]),
    records=int(fields["records"]),
    size_bytes=int(fields["size_bytes"]),
    sha256=str(fields["sha256"]),
  )


def verify(folder: str | os.PathLike[str], manifest: Manifest) -> Iterator[Shard]:
  """Reads a whole data set and compares it with its manifest.

  Yields:
    Each shard that was found good: its length, SHA-256, number of records, and in every record
    the id and the labels. Images are not decoded.

  Raises:
    UserError: at the first difference.
  """
  for split in manifest.splits.values():
    check_shard_sizes(folder, split)
    next_id = 0
    for shard in split.shards:
      _verify_shard(folder, shard, next_id, manifest)
      next_id += shard.records
      yield shard


def _verify_shard(
  folder: str | os.PathLike[str], shard: Shard, first_id: int, manifest: Manifest
) -> None:
  path = pathlib.Path(folder, shard.file)
  found = describe_shard(folder, shard.file, shard.records)
  if found.sha256 != shard.sha256:
    raise UserError(
      f"record file {path} has SHA-256 {found.sha256} where {MANIFEST_NAME} has {shard.sha256}"
    )
  with contextlib.closing(open_shard(folder, shard)) as reader:
    for position, stored in enumerate(_read_in_order(reader, shard.records)):
      record = decode_record(stored)
      if record.id != first_id + position:
        raise UserError(
          f"record file {path}: record {position} has id {record.id}, not {first_id + position}"
        )
      if not 1 <= len(record.labels) <= manifest.labels_per_record_max or not all(
        0 <= label < len(manifest.class_names) for label in record.labels
      ):
        raise UserError(
          f"record file {path}: record {position} has labels {list(record.labels)}; there are "
          f"{len(manifest.class_names)} classes"
        )


def _read_in_order(reader: array_record_module.ArrayRecordReader, records: int) -> Iterator[bytes]:
  for start in range(0, records, _RECORDS_PER_READ):
    yield from reader.read(start, min(start + _RECORDS_PER_READ, records))


def _manifest_from_json(fields: dict) -> Manifest:
  return Manifest(
    class_names=tuple(str(name) for name in fields["class_names"]),
    labels_per_record_max=int(fields["labels_per_record_max"]),
    splits={
      name: Split(
        records=int(split["records"]),
        shards=tuple(shard_from_json(shard) for shard in split["shards"]),
      )
      for name, split in fields["splits"].items()
    },
    skipped_images=tuple(str(name) for name in fields["skipped_images"]),
  )
