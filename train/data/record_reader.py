"""Random access to the records of one split, over all its record files."""

import bisect
import itertools
import os
import threading

from array_record.python import array_record_module

from train.data.manifest import RecordFile, Split
from train.data.record_files import BadRecordError, Record, decode_record, open_record_file

# A split this small is read as a whole: its records then cost no further reads, and may be
# compressed in large groups, which would otherwise be decompressed for every single record.
IN_MEMORY_BYTES_MAX = 64 * 2**20


class RecordReader:
  """Reads any record of a split, from any number of threads; it pickles as its description.

  Record files are opened on first use.

  Attributes:
    folder: folder of the data set.
    split: split from its manifest.
    in_memory: whether the split is small enough to be kept in memory.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    split: Split,
    in_memory_bytes_max: int = IN_MEMORY_BYTES_MAX,
  ):
    self.folder = os.fspath(folder)
    self.split = split
    self.in_memory = split.size_bytes <= in_memory_bytes_max
    self._in_memory_bytes_max = in_memory_bytes_max
    self._ends = list(itertools.accumulate(file.records for file in split.record_files))
    self._opened: dict[int, list[bytes] | array_record_module.ArrayRecordReader] = {}
    self._lock = threading.Lock()

  def __reduce__(self):
    return RecordReader, (self.folder, self.split, self._in_memory_bytes_max)

  def __len__(self) -> int:
    return self.split.records

  def read(self, index: int) -> Record:
    """Returns a record by its index in the split.

    Raises:
      BadRecordError: the record is damaged, or has another id than expected.
      UserError: its record file cannot be opened.
    """
    which, position = self._locate(index)
    opened = self._open(which)
    if isinstance(opened, list):
      stored = opened[position]
    else:
      try:
        (stored,) = opened.read([position])
      # The reader raises RuntimeError, ValueError or IndexError, depending on the damage.
      except Exception as error:
        raise BadRecordError(f"cannot be read: {error}") from error
    record = decode_record(stored)
    if record.id != index:
      raise BadRecordError(f"has id {record.id} in the place of {index}")
    return record

  def describe(self, index: int) -> str:
    """Says where a record is."""
    which, position = self._locate(index)
    return f"record {position} of {self.split.record_files[which].file}"

  def _locate(self, index: int) -> tuple[int, int]:
    which = bisect.bisect_right(self._ends, index)
    return which, index - (self._ends[which] - self.split.record_files[which].records)

  def _open(self, which: int) -> list[bytes] | array_record_module.ArrayRecordReader:
    opened = self._opened.get(which)
    if opened is None:
      with self._lock:
        opened = self._opened.get(which)
        if opened is None:
          opened = self._opened[which] = self._open_or_load(self.split.record_files[which])
    return opened

  def _open_or_load(
    self, record_file: RecordFile
  ) -> list[bytes] | array_record_module.ArrayRecordReader:
    reader = open_record_file(self.folder, record_file)
    if self.in_memory:
      try:
        return reader.read_all()
      except Exception:
        # Some record is damaged. The others can still be read one by one.
        return reader
    return reader
