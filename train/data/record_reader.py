"""Random access to the records of one split, over all its record files."""

import bisect
import collections
import itertools
import os
import threading

from array_record.python import array_record_module

from nfnet.system.open_files import raise_open_files_max
from train.data.manifest import Split
from train.data.record_files import BadRecordError, Record, decode_record, open_record_file

# A split this small is read as a whole: its records then cost no further reads, and may be
# compressed in large groups, which would otherwise be decompressed for every single record.
IN_MEMORY_BYTES_MAX = 64 * 2**20

# A reader takes about 0.1 MB and a descriptor. Opening one anew takes 0.25 ms, where decoding a
# photograph takes 5.
_OPEN_READERS_MAX = 1024


class RecordReader:
  """Reads any record of a split, from any number of threads; it pickles as its description.

  Record files are opened on first use. Those used last stay open, as many as half of the limit of
  open files allows, which is raised as far as possible.

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
    self._readers_max = max(1, min(_OPEN_READERS_MAX, raise_open_files_max() // 2))
    self._loaded: dict[int, list[bytes] | None] = {}
    # The one used last is at the end.
    self._readers: collections.OrderedDict[int, array_record_module.ArrayRecordReader] = (
      collections.OrderedDict()
    )
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
    """Returns what one record file's records are read from."""
    if (loaded := self._load(which)) is not None:
      return loaded
    with self._lock:
      if (reader := self._readers.get(which)) is not None:
        self._readers.move_to_end(which)
        return reader
    # Without the lock, since opening a file may take long. Should two threads do it, one wins.
    opened = open_record_file(self.folder, self.split.record_files[which])
    with self._lock:
      reader = self._readers.setdefault(which, opened)
      if len(self._readers) > self._readers_max:
        # It is closed with its last user, which may be a thread that is reading right now.
        self._readers.popitem(last=False)
    return reader

  def _load(self, which: int) -> list[bytes] | None:
    """Returns all records of a file, unless they are too large or one is damaged."""
    if not self.in_memory:
      return None
    if which not in self._loaded:
      with self._lock:
        if which not in self._loaded:
          reader = open_record_file(self.folder, self.split.record_files[which])
          try:
            self._loaded[which] = reader.read_all()
          except Exception:
            # The others can still be read one by one.
            self._loaded[which] = None
    return self._loaded[which]
