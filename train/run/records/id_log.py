"""Which images a run has trained on: a compact record that can prove that each came once an epoch.

`ids/PROCESS.bin` in the workdir has one record of 48 bytes for each batch that a process was given
(two where a batch spans two epochs). The ids are in it as a sum of 64-bit hashes: sums of
processes add up to that of the global batch and those of batches to that of an epoch, in any order,
and two sets of ids that are not the same have the same sum with a probability of 2^-64.
`ids/order.json` says what the order is made from. `train.audit_data` reads both.
"""

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
    ("start", "<u8"),  # Nanoseconds since 1970 at which the run was started or went back.
    ("step", "<u8"),  # That used the batch, counted from 1.
    ("id_sum", "<u8"),  # Of `hash_ids`, modulo 2^64.
    ("epoch", "<u4"),
    ("images", "<u4"),  # Of the process.
    ("blank", "<u4"),  # Of these, those that could not be decoded.
    ("processes", "<u4"),
    ("left_out", "<u4"),  # 1 where the run went on without the batch, after rolling back.
    ("crc32", "<u4"),  # Of what is before.
  ]
)


def hash_ids(ids: np.ndarray) -> np.ndarray:
  """uint64 of the same shape; the mixing of splitmix64 (https://prng.di.unimi.it/splitmix64.c)."""
  x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def id_sum(ids: np.ndarray) -> int:
  """Of the hashes, modulo 2^64."""
  return int(np.sum(hash_ids(ids), dtype=np.uint64))


class IdLog:
  """Writes the records of one process. Use as a context manager."""

  def __init__(
    self, workdir: str, *, start: int, process: int, processes: int, order: Mapping[str, Any]
  ):
    """Opens the record and appends to it.

    Args:
      workdir: folder of the run; created if needed.
      start: the same number in all processes, greater than that of earlier starts.
      process: index of this one.
      processes: in all.
      order: what `order.json` is to say, written by the first process.

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
    """Records a batch of this process, in memory until `flush`.

    Args:
      step: that uses it.
      batch: of `train.data.batches`.
      left_out: it is not used.
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
    """On disk: before a checkpoint is, whose steps are not done again.

    Raises:
      UserError: the disk is full.
    """
    with writing_to(self._workdir):
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Flushes too."""
    with writing_to(self._workdir):
      self._file.close()

  def __enter__(self) -> "IdLog":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()


def crc32(records: np.ndarray) -> np.ndarray:
  """Of each record, without its last field."""
  size = RECORD.itemsize
  content = records.tobytes()
  return np.array(
    [zlib.crc32(content[i : i + size - 4]) for i in range(0, len(content), size)], np.uint32
  )


def read_order(workdir: str) -> dict[str, Any]:
  """What the order of the images is made from.

  Raises:
    UserError: it is not there.
  """
  path = pathlib.Path(workdir) / IDS_FOLDER / ORDER_FILE
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}; is this the workdir of a run?") from error


def read_records(workdir: str) -> np.ndarray:
  """Records of all processes, [records] of `RECORD`, in the order of each file.

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
