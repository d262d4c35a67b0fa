"""Records which images a run has trained on, compactly, so that an audit can prove it.

`ids/PROCESS.bin` in the workdir has one record of 48 bytes for each batch that a process was given
(two records where a batch spans two epochs). It holds the ids as a sum of 64-bit hashes: the sums
of processes add up to the sum of the global batch, and those of batches to the sum of an epoch, in
any order. Two different sets of ids have the same sum with a probability of 2^-64. `ids/order.json`
has the values that determine the order of the images. `train.audit_data` reads both and
proves that each epoch used each image once.
"""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from nfnet.errors import UserError
from train.run.records.workdir import writing_to

IDS_FOLDER = "ids"
ORDER_FILE = "order.json"
RECORD = np.dtype(
  [
    ("start", "<u8"),  # Nanoseconds since 1970 at which the run was started or rolled back.
    ("step", "<u8"),  # Number of the step that used the batch, counted from 1.
    ("id_sum", "<u8"),  # Sum of `hash_ids`, modulo 2^64.
    ("epoch", "<u4"),
    ("images", "<u4"),  # Number of images that the process had.
    ("blank", "<u4"),  # Number of these images that could not be decoded.
    ("processes", "<u4"),
    ("left_out", "<u4"),  # 1 where the run went on without the batch, after rolling back.
    ("crc32", "<u4"),  # CRC of the fields above.
  ]
)


def hash_ids(ids: np.ndarray) -> np.ndarray:
  """Returns 64-bit hashes of the ids, by splitmix64 (https://prng.di.unimi.it/splitmix64.c).

  Args:
    ids: integers of any shape.

  Returns:
    uint64 of the same shape.
  """
  x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def id_sum(ids: np.ndarray) -> int:
  """Returns the sum of the hashes of the ids, modulo 2^64."""
  return int(np.sum(hash_ids(ids), dtype=np.uint64))


class IdLog:
  """Writes the records of one process. Use as a context manager."""

  def __init__(
    self, workdir: str, *, start: int, process: int, processes: int, order: Mapping[str, Any]
  ):
    """Opens the file of this process to append to it.

    Args:
      workdir: folder of the run; created if needed.
      start: number of this start, the same in all processes, greater than those of earlier starts.
      process: index of this process.
      processes: number of processes.
      order: content of `order.json`, which the first process writes.

    Raises:
      UserError: `workdir` cannot be written.
    """
    self._start = start
    self._processes = processes
    self._epoch_images = order["examples"] * order["repetitions"]
    self._workdir = workdir
    folder = pathlib.Path(workdir) / IDS_FOLDER
    with writing_to(workdir):
      folder.mkdir(parents=True, exist_ok=True)
      if process == 0:
        (folder / ORDER_FILE).write_text(json.dumps(dict(order)))
      self._file = (folder / f"{process:05}.bin").open("ab")
      # A kill may have cut the last record.
      self._file.truncate(self._file.tell() // RECORD.itemsize * RECORD.itemsize)

  def append(self, step: int, batch: Mapping[str, np.ndarray], *, left_out: bool = False) -> None:
    """Records a batch of this process; it stays in memory until `flush`.

    Args:
      step: number of the step that uses the batch.
      batch: batch from `train.data.batches`.
      left_out: whether the step does not train on the batch, after rolling back.
    """
    epochs = batch["position"] // self._epoch_images
    for epoch in np.unique(epochs):
      own = epochs == epoch
      record = np.zeros((), RECORD)
      record["start"], record["step"], record["epoch"] = self._start, step, epoch
      record["id_sum"] = id_sum(batch["id"][own])
      record["images"] = np.count_nonzero(own)
      record["blank"] = np.count_nonzero(batch["weight"][own] == 0)
      record["processes"], record["left_out"] = self._processes, left_out
      record["crc32"] = crc32(record.reshape(1))[0]
      with writing_to(self._workdir):
        self._file.write(record.tobytes())

  def flush(self) -> None:
    """Writes the records to disk.

    It has to be called before a checkpoint is saved, because the steps before that checkpoint will
    not be done again.

    Raises:
      UserError: the disk is full.
    """
    with writing_to(self._workdir):
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Writes what is left and closes the file."""
    try:
      with writing_to(self._workdir):
        self._file.flush()
    finally:
      # Flushing has raised the error already; closing would raise it again.
      with contextlib.suppress(OSError):
        self._file.close()

  def __enter__(self) -> "IdLog":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()


def crc32(records: np.ndarray) -> np.ndarray:
  """Returns the CRC-32 of each record without its last field, uint32 [records]."""
  size = RECORD.itemsize
  content = records.tobytes()
  return np.array(
    [zlib.crc32(content[i : i + size - 4]) for i in range(0, len(content), size)], np.uint32
  )


def read_order(workdir: str) -> dict[str, Any]:
  """Returns the values that determine the order: seed, examples, batch size and repetitions.

  Args:
    workdir: folder of the run.

  Raises:
    UserError: `ids/order.json` cannot be read.
  """
  path = pathlib.Path(workdir) / IDS_FOLDER / ORDER_FILE
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}; is this the workdir of a run?") from error


def read_records(workdir: str) -> np.ndarray:
  """Returns the records of all processes, [records] of `RECORD`, in the order of each file.

  Args:
    workdir: folder of the run.

  Raises:
    UserError: a record is damaged.
  """
  parts = []
  for path in sorted((pathlib.Path(workdir) / IDS_FOLDER).glob("*.bin")):
    content = path.read_bytes()
    part = np.frombuffer(content[: len(content) // RECORD.itemsize * RECORD.itemsize], RECORD)
    damaged = np.flatnonzero(crc32(part) != part["crc32"])
    if len(damaged):
      raise UserError(f"{path}: record {damaged[0]} of {len(part)} is damaged")
    parts.append(part)
  return np.concatenate(parts) if parts else np.zeros(0, RECORD)
