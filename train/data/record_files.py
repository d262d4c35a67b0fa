"""ArrayRecord files: encodes and decodes their records, opens them, and verifies a data set.

A record is a msgpack map: `id` (its index in its split, counted over the record files), `labels` (a
list of class indices) and `image` (the bytes of an image file).
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import msgpack
from array_record.python import array_record_module

from nfnet.errors import UserError, format_count, there_are
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.open_files import open_files_error
from train.data.manifest import (
  MANIFEST_NAME,
  Manifest,
  RecordFile,
  check_file_sizes,
  describe_file,
)

# Random access decompresses a whole group, so a group is one record; images are compressed
# already. Measured: a read takes 7 us, 26 us with the default compression; overhead is about 100
# bytes a record.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Without these options, a reader keeps 16 MB and threads of its own for reading ahead.
_RANDOM_ACCESS_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_RANDOM_ACCESS_BUFFER_BYTES = 32768
_RECORDS_PER_READ = 1024


class BadRecordError(Exception):
  """The error for bytes that are not a record."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One labeled image.

  Attributes:
    id: index in its split, counted over the record files.
    labels: class indices, at least one.
    image: bytes of a JPEG, PNG or WebP file.
  """

  id: int
  labels: tuple[int, ...]
  image: bytes


def encode_record(record: Record) -> bytes:
  """Returns the bytes that are stored for a record."""
  return msgpack.packb({"id": record.id, "labels": list(record.labels), "image": record.image})


def decode_record(stored: bytes) -> Record:
  """Returns the record that `encode_record` has encoded.

  Raises:
    BadRecordError: the bytes are not a record; the message says why.
  """
  try:
    fields = msgpack.unpackb(stored)
  # msgpack documents no common base class of the errors that damaged bytes raise.
  except Exception as error:
    raise BadRecordError(f"not msgpack: {error}") from error
  match fields:
    case {"id": int(number), "labels": [*labels], "image": bytes(image)} if labels and all(
      isinstance(label, int) for label in labels
    ):
      return Record(number, tuple(labels), image)
  raise BadRecordError("not a map of id, labels and image")


@contextlib.contextmanager
def open_writer(
  path: pathlib.Path, writer_options: str = WRITER_OPTIONS
) -> Iterator[array_record_module.ArrayRecordWriter]:
  """Opens a record file for writing.

  Args:
    path: path of the file.
    writer_options: options of ArrayRecord.

  Raises:
    UserError: on closing, if the file could not be written whole.
  """
  writer = array_record_module.ArrayRecordWriter(str(path), writer_options)
  try:
    yield writer
  finally:
    try:
      writer.close()
    # The writer does not report a failed write, for example on a full disk, until it is closed.
    except RuntimeError as error:
      raise UserError(
        f"cannot write {path}: {error}; the same command continues where this one stopped"
      ) from error


def open_record_file(
  folder: str | os.PathLike[str], record_file: RecordFile
) -> array_record_module.ArrayRecordReader:
  """Opens a record file for random access.

  Raises:
    UserError: the file cannot be read, or its number of records is not the manifest's.
  """
  path = pathlib.Path(folder, record_file.file)
  try:
    opened = open_regular(path)
  except OSError as error:
    reason = open_files_error() or error.strerror
    raise UserError(f"record file {path} cannot be opened: {reason}") from error
  # Kept open meanwhile, since the reader does not say that it has reached the limit of open files:
  # it finds 0 records.
  with opened:
    try:
      reader = array_record_module.ArrayRecordReader(
        str(path),
        options=_RANDOM_ACCESS_OPTIONS,
        file_reader_buffer_size=_RANDOM_ACCESS_BUFFER_BYTES,
      )
      records = reader.num_records()
    # The reader raises RuntimeError, ValueError or IndexError, depending on the damage.
    except Exception as error:
      raise UserError(
        f"record file {path} cannot be read: {open_files_error() or error}"
      ) from error
    if records != record_file.records and (limit := open_files_error()):
      raise UserError(f"record file {path} cannot be opened: {limit}")
  if records != record_file.records:
    raise UserError(
      f"record file {path} has {format_count(records, 'record')} where "
      f"{MANIFEST_NAME} has {record_file.records:,}"
    )
  return reader


def verify(folder: str | os.PathLike[str], manifest: Manifest) -> Iterator[RecordFile]:
  """Yields each record file after it was read whole and agrees with the manifest.

  It compares the file's length, SHA-256 and number of records, and every record's id and labels.
  Images are not decoded.

  Raises:
    UserError: at the first difference, or at the first file that cannot be read.
  """
  for split in manifest.splits.values():
    check_file_sizes(folder, split)
    next_id = 0
    for record_file in split.record_files:
      _verify_file(folder, record_file, next_id, manifest)
      next_id += record_file.records
      yield record_file


def _verify_file(
  folder: str | os.PathLike[str], record_file: RecordFile, first_id: int, manifest: Manifest
) -> None:
  path = pathlib.Path(folder, record_file.file)
  try:
    found = describe_file(folder, record_file.file, record_file.records)
  except OSError as error:
    raise UserError(f"record file {path} cannot be read: {error.strerror}") from error
  if found.sha256 != record_file.sha256:
    raise UserError(
      f"record file {path} has SHA-256 {found.sha256} where {MANIFEST_NAME} has "
      f"{record_file.sha256}"
    )
  with contextlib.closing(open_record_file(folder, record_file)) as reader:
    for position, stored in enumerate(_read_in_order(reader, record_file.records, path)):
      try:
        record = decode_record(stored)
      except BadRecordError as error:
        raise UserError(f"record file {path}: record {position} is {error}") from error
      if record.id != first_id + position:
        raise UserError(
          f"record file {path}: record {position} has id {record.id}, not {first_id + position}"
        )
      if not manifest.allows(record.labels):
        raise UserError(
          f"record file {path}: record {position} has labels {list(record.labels)}; "
          f"{there_are(len(manifest.class_names), 'class')}"
        )


def _read_in_order(
  reader: array_record_module.ArrayRecordReader, records: int, path: pathlib.Path
) -> Iterator[bytes]:
  for start in range(0, records, _RECORDS_PER_READ):
    try:
      stored = reader.read(start, min(start + _RECORDS_PER_READ, records))
    # The reader raises RuntimeError, ValueError or IndexError, depending on the damage.
    except Exception as error:
      raise UserError(
        f"record file {path} cannot be read from record {start} on: {error}"
      ) from error
    yield from stored
