"""Records which images a run has trained on, compactly, so that an audit can prove it.

`ids/PROCESS.bin` in the workdir has one record of 48 bytes for each batch that a process was given
(two records where a batch spans two epochs). It holds the ids as a sum of 64-bit hashes: the sums
of processes add up to the sum of the global batch, and those of batches to the sum of an epoch, in
any order. Two different sets of ids have the same sum with a probability of 2^-64. `ids/order.json`
has the values that determine the order of the images. `train.audit_data` reads both and
proves that each epoch used each image once.
"""

import json
import os
import pathlib
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from nfnet.errors import UserError, format_count
from nfnet.foreign_files.json_text import read_json
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.durable_files import write_durably
from train.run.records.bookkeeping import (
  DAMAGED_FOLDER,
  RecordFile,
  make_place,
  report_unwritable,
  set_aside,
)

IDS_FOLDER = "ids"
ORDER_FILE = "order.json"
RECORD = np.dtype(
  [
    ("start", "<u8"),  # Nanoseconds since 1970 when the run was started or rolled back; grows.
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

_POSITIVE = range(1, 2**63)
_ORDER = {"seed": int, "examples": _POSITIVE, "batch_size": _POSITIVE, "repetitions": _POSITIVE}
_START_MAX = 2**64 - 1
# What is searched for the next record after something that is not one.
_SEARCHED_BYTES_MAX = 1 << 20


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


def next_start(workdir: str) -> int:
  """Returns the number of a start that begins now: the time, if the clock was not set back.

  Args:
    workdir: folder of the run. The file of its first process, which took part in every start, says
      what the number has to exceed.
  """
  try:
    sound, _ = _split(_read(_path(workdir, process=0)))
  except OSError:
    sound = np.zeros(0, RECORD)
  return max(time.time_ns(), min(int(sound["start"].max(initial=0)) + 1, _START_MAX))


class IdLog:
  """Writes the records of one process. Use as a context manager."""

  def __init__(
    self, workdir: str, *, start: int, process: int, processes: int, order: Mapping[str, Any]
  ):
    """Opens the file of this process to append to it.

    Args:
      workdir: folder of the run.
      start: number of this start, the same in all processes; the first has it from `next_start`.
      process: index of this process.
      processes: number of processes.
      order: content of `order.json`, which the first process writes.
    """
    self._start = start
    self._processes = processes
    self._epoch_images = order["examples"] * order["repetitions"]
    folder = pathlib.Path(workdir)
    make_place(folder, IDS_FOLDER, folder=True)
    if process == 0:
      _write_order(folder, order)
    name = str(_path("", process))
    make_place(folder, name)
    _repair(folder, name)
    self._file = RecordFile(folder, name)

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
      self._file.append(record.tobytes())

  def flush(self) -> None:
    """Writes the records to disk.

    It has to be called before a checkpoint is saved, because the steps before that checkpoint will
    not be done again. What cannot be written is reported (`train.run.records.bookkeeping`).
    """
    self._file.flush(sync=True)

  def close(self) -> None:
    """Writes what is left and closes the file."""
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
    UserError: `ids/order.json` cannot be read or is damaged.
  """
  path = pathlib.Path(workdir) / IDS_FOLDER / ORDER_FILE
  if not os.path.isdir(workdir):
    raise UserError(f"workdir {workdir!r} is not a folder; give the workdir of a run")
  try:
    return read_json(path, _ORDER)
  except UserError as error:
    raise UserError(
      f"{error}; give the workdir of a run, and start the run again if it is one: that writes the "
      "file anew, even if the run is finished"
    ) from error


def read_records(workdir: str) -> tuple[np.ndarray, int]:
  """Returns the sound records of all processes, in the order of each file.

  Args:
    workdir: folder of the run.

  Returns:
    The records, [records] of `RECORD`, and the number of bytes that are not records, with those
    that a later start has set aside.
  """
  parts, damaged_bytes = [np.zeros(0, RECORD)], _set_aside_bytes(pathlib.Path(workdir))
  for path in sorted((pathlib.Path(workdir) / IDS_FOLDER).glob("*.bin")):
    try:
      sound, damaged = _split(_read(path))
    except OSError as error:
      logging.warning("%s was left out: %s", path, error.strerror)
      damaged_bytes += RECORD.itemsize
      continue
    if damaged:
      logging.warning(
        "%s: left out what is not a record, %s", path, format_count(len(damaged), "byte")
      )
    damaged_bytes += len(damaged)
    parts.append(sound)
  return np.concatenate(parts), damaged_bytes


def _set_aside_bytes(workdir: pathlib.Path) -> int:
  place = workdir / DAMAGED_FOLDER / IDS_FOLDER
  paths = [*place.glob("*.bin*")] if place.is_dir() else [place]
  return sum(path.lstat().st_size or 1 for path in paths if os.path.lexists(path))


def _path(workdir: str, process: int) -> pathlib.Path:
  return pathlib.Path(workdir) / IDS_FOLDER / f"{process:05}.bin"


def _read(path: pathlib.Path) -> bytes:
  with open_regular(path) as file:
    return file.read()


def _split(content: bytes) -> tuple[np.ndarray, bytes]:
  """Returns the sound records in a file, and the bytes between them.

  After something that is not a record, the next record may begin at any byte. A last record that
  was cut off is in neither.
  """
  size = RECORD.itemsize
  whole = np.frombuffer(content[: len(content) // size * size], RECORD)
  bad = np.flatnonzero(crc32(whole) != whole["crc32"])
  if not len(bad):
    return whole, b""
  first = int(bad[0])
  sound, damaged, position, last_sound = [whole[:first]], bytearray(), first * size, first * size
  while position + size <= len(content):
    record = np.frombuffer(content[position : position + size], RECORD)
    if crc32(record)[0] == record["crc32"][0]:
      sound.append(record)
      damaged += content[last_sound:position]
      position += size
      last_sound = position
    elif position - last_sound < _SEARCHED_BYTES_MAX:
      position += 1
    else:
      position = len(content)
  rest = content[last_sound:]
  if len(rest) >= size:
    damaged += rest
  return np.concatenate(sound), bytes(damaged)


def _repair(workdir: pathlib.Path, name: str) -> None:
  """Sets aside what is not a record, and removes a last record that was cut off."""
  path = workdir / name
  try:
    content = _read(path) if path.exists() else b""
    sound, damaged = _split(content)
    if damaged:
      set_aside(workdir, name, damaged)
      logging.warning(
        "%s: set aside what is not a record, %s, in %s",
        path,
        format_count(len(damaged), "byte"),
        DAMAGED_FOLDER,
      )
    if sound.nbytes != len(content):
      write_durably(path, sound.tobytes())
  except OSError as error:
    report_unwritable(workdir, name, error)


def _write_order(workdir: pathlib.Path, order: Mapping[str, Any]) -> None:
  name = f"{IDS_FOLDER}/{ORDER_FILE}"
  make_place(workdir, name)
  try:
    write_durably(workdir / name, json.dumps(dict(order)).encode())
  except OSError as error:
    report_unwritable(workdir, name, error)
