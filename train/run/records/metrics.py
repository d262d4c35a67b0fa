"""Writes and reads the metrics of a run: metrics.jsonl, and TensorBoard event files beside it.

metrics.jsonl has one JSON object per line. Each has "step" and "kind":

- "train": means over the steps since the last such record;
- "evaluation": held-out scores; "ema" is true for those of the moving average;
- "event": something out of the ordinary, as "text". If the run stops because it has diverged,
  "fault" is `train.run.faults.DIVERGED`.

A number that is not finite is written as null, because JSON cannot express it, and read back as
NaN. Lines that are not records are left out (`train.run.records.bookkeeping`).
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from nfnet.errors import UserError
from nfnet.foreign_files.numbers import is_count, is_number
from train.run.records.bookkeeping import (
  Record,
  make_place,
  open_lines,
  parse_line,
  read_lines,
  report_unwritable,
)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

_NUMBERS = frozenset(
  {"loss", "top1", "top5", "learning_rate", "images_per_second", "data_wait_share"}
)
_TYPES = {"ema": bool, "text": str, "fault": str}
"""Types of the values that readers of the metrics use, beside `_NUMBERS`."""


class MetricsWriter:
  """Appends the records of a run. Use as a context manager, or call `close`."""

  def __init__(self, workdir: str, *, restored_step: int | None, evaluates_again: bool = False):
    """Opens the files and drops the records of steps that will be done again.

    Args:
      workdir: folder of the run.
      restored_step: step of the checkpoint that the run resumes from; None drops all records.
      evaluates_again: whether the evaluation of that step was cut short and will be done again.
    """
    self._workdir = pathlib.Path(workdir)
    self._has_evaluation = False
    self._restored_step = restored_step

    def is_kept(record: Record) -> bool:
      if restored_step is None or record["step"] > restored_step:
        return False
      if (record["step"], record["kind"]) != (restored_step, "evaluation"):
        return True
      self._has_evaluation = not evaluates_again
      return self._has_evaluation

    self._file = open_lines(self._workdir, METRICS_FILE, _as_record, is_kept)
    make_place(self._workdir, TENSORBOARD_FOLDER, folder=True)
    self._events: EventsWriter | None = None
    with self._writing_events():
      # Not SummaryWriter: it writes from a thread, which dies on a full disk while its queue fills
      # up.
      self._events = EventsWriter(
        str(self._workdir / TENSORBOARD_FOLDER / "events"), filename_suffix=f".{time.time_ns()}"
      )
      # Tells TensorBoard to forget what earlier files have at these steps.
      self._write_event(
        step=0 if restored_step is None else restored_step + 1,
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
      )

  @property
  def has_evaluation(self) -> bool:
    """Returns whether there is a record of the evaluation of the restored step."""
    return self._has_evaluation

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record and flushes it to both files.

    Args:
      record: "step" (int), "kind" (str) and further values: text, booleans, numbers, or arrays of
        one number.
    """
    values = {name: _as_json(value) for name, value in record.items()}
    group = values["kind"] + ("_ema" if values.get("ema") is True else "")
    self._file.append(json.dumps(values, allow_nan=False).encode() + b"\n")
    self._file.flush()
    with self._writing_events():
      for name, value in values.items():
        if name != "step" and is_number(value):
          self._write_event(values["step"], summary=scalar(f"{group}/{name}", value))
      if self._events is not None:
        self._events.flush()

  def close(self) -> None:
    """Closes both files."""
    try:
      self._file.close()
    finally:
      with self._writing_events():
        if self._events is not None:
          self._events.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _write_event(self, step: int, **content) -> None:
    if self._events is not None:
      self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

  @contextlib.contextmanager
  def _writing_events(self) -> Iterator[None]:
    """Gives TensorBoard's file up if it cannot be written: it may have got a part of an event."""
    try:
      yield
    except OSError as error:
      self._events = None
      report_unwritable(self._workdir, TENSORBOARD_FOLDER, error)


def read_metrics(path: str | os.PathLike) -> list[Record]:
  """Returns the records in the order in which they were written.

  Lines that are not records are left out, and their number is logged. A last line that was cut
  short by a crash is left out silently.

  Args:
    path: a metrics.jsonl, or the workdir that holds it.

  Raises:
    UserError: there is no such file.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path /= METRICS_FILE
  try:
    return read_lines(path, _as_record)
  except OSError as error:
    raise UserError(f"metrics file {str(path)!r} cannot be read: {error.strerror}") from error


def is_evaluated(workdir: str, step: int, *, ema: bool) -> bool:
  """Returns whether the evaluation of a step is on record to its end.

  Args:
    workdir: folder of the run.
    step: number of the step.
    ema: whether the run has a moving average, whose evaluation is the last.
  """
  try:
    records = read_metrics(workdir)
  except UserError:
    return False
  return any(
    (r["step"], r["kind"], bool(r.get("ema"))) == (step, "evaluation", ema) for r in records
  )


def parse_metrics_line(line: str) -> Record | None:
  """Returns the record in a line of metrics.jsonl, or None if it holds none."""
  return parse_line(line, _as_record)


def _as_record(value: Any) -> Record | None:
  """Returns the record in a JSON value, with NaN for null, or None if it is not one."""
  if not isinstance(value, dict) or not is_count(value.get("step")):
    return None
  if value.get("kind") not in ("train", "evaluation", "event"):
    return None
  if not all(isinstance(value[name], kind) for name, kind in _TYPES.items() if name in value):
    return None
  record = {}
  for name, one in value.items():
    if one is None or (isinstance(one, float) and not math.isfinite(one)):
      one = math.nan
    elif name in _NUMBERS and is_number(one):
      # Of integers beyond 64 bits, NumPy makes an array of objects.
      one = float(one)
    elif name in _NUMBERS or not isinstance(one, str | bool | int | float):
      return None
    record[name] = one
  return record


def _as_json(value: Any) -> Any:
  """Returns a value that JSON can hold; None for a number that is not finite."""
  value = np.asarray(value).item()
  return None if isinstance(value, float) and not math.isfinite(value) else value
