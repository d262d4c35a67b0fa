"""Random access to the records of one split, over all its shards."""

import bisect
import itertools
import os
import threading

from array_record.python import array_record_module

from train.data import records

# A split this small is read at once: its records then cost no reads, and may be compressed in
# large groups, which would otherwise be decompressed for every single record.
IN_MEMORY_BYTES_MAX = 64 * 2**20


class RecordReader:
  """Record `i` of a split, for any number of threads; pickles as its description.

  Shards are opened when they are first read from.

  Attributes:
    folder: of the data set.
    split: from its manifest.
    in_memory: whether the split is small enough to be kept there.
  """

  def __init__(self, folder: str | os.PathLike[str], split: records.Split):
    self.folder = os.fspath(folder)
    self.split = split
    self.in_memory = split.size_bytes <= IN_MEMORY_BYTES_MAX
    self._ends = list(itertools.accumulate(shard.records for shard in split.shards))
    self._opened: dict[int, list[bytes] | array_record_module.ArrayRecordReader] = {}
    self._lock = threading.Lock()

  def __reduce__(self):
    return RecordReader, (self.folder, self.split)

  def __len__(self) -> int:
    return self.split.records

  def read(self, index: int) -> records.Record:
    """Returns a record.

    Raises:
      BadRecordError: it is damaged or another one.
      UserError: its shard cannot be opened.
    """
    which, position = self._locate(index)
    shard = self._open(which)
    if isinstance(shard, list):
      stored = shard[position]
    else:
      try:
        (stored,) = shard.read([position])
      # The reader raises RuntimeError, ValueError or IndexError, by the kind of damage.
      except Exception as error:
        raise records.BadRecordError(f"cannot be read: {error}") from error
    record = records.decode_record(stored)
    if record.id != index:
      raise records.BadRecordError(f"has id {record.id} in the place of {index}")
    return record

  def describe(self, index: int) -> str:
    """Says where a record is."""
    which, position = self._locate(index)
    return f"record {position} of {self.split.shards[which].file}"

  def _locate(self, index: int) -> tuple[int, int]:
    which = bisect.bisect_right(self._ends, index)
    return which, index - (self._ends[which] - self.split.shards[which].records)

  def _open(self, which: int) -> list[bytes] | array_record_module.ArrayRecordReader:
    shard = self._opened.get(which)
    if shard is None:
      with self._lock:
        shard = self._opened.get(which)
        if shard is None:
          shard = self._opened[which] = self._open_or_load(self.split.shards[which])
    return shard

  def _open_or_load(
    self, shard: records.Shard
  ) -> list[bytes] | array_record_module.ArrayRecordReader:
    reader = records.open_shard(self.folder, shard)
    if self.in_memory:
      try:
        return reader.read_all()
      except Exception:
        # Damaged somewhere: one by one, the other records can still be read.
        return reader
    return reader
