"""Writes and reads the metrics of a run: metrics.jsonl, and hands them to TensorBoard and others.

metrics.jsonl has one JSON object per line. Each has "step" and "kind":

- "train": means over the steps since the last such record;
- "evaluation": held-out scores; "ema" is true for those of the moving average;
- "event": something out of the ordinary, as "text". If the run stops because it has diverged,
  "fault" is `train.run.faults.DIVERGED`.

A number that is not finite is written as null, because JSON cannot express it, and read back as
NaN. Lines that are not records are left out (`train.run.records.bookkeeping`).

All that this project reads of a run is read from metrics.jsonl. It is therefore written first, and
on disk before another logger (`train.run.records.loggers`) gets the record.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nfnet.errors import UserError
from nfnet.foreign_files.numbers import is_count, is_number
from train.run.records.bookkeeping import (
  Record,
  open_lines,
  parse_line,
  read_lines,
)
from train.run.records.loggers import Logger
from train.run.records.tensorboard import TensorBoardLogger

METRICS_FILE = "metrics.jsonl"

_NUMBERS = frozenset(
  {"loss", "top1", "top5", "learning_rate", "images_per_second", "data_wait_share"}
)
_TYPES = {"ema": bool, "text": str, "fault": str}
"""Types of the values that readers of the metrics use, beside `_NUMBERS`."""


class JsonLinesLogger:
  """A `train.run.records.loggers.Logger` that writes metrics.jsonl."""

  def __init__(self, workdir: pathlib.Path, *, restored_step: int | None, evaluates_again: bool):
    """Opens the file and drops the records of steps that will be done again.

    Args:
      workdir: folder of the run.
      restored_step: step of the checkpoint that the run resumes from; None drops all records.
      evaluates_again: whether the evaluation of that step was cut short and will be done again.
    """
    self._has_evaluation = False

    def is_kept(record: Record) -> bool:
      if restored_step is None or record["step"] > restored_step:
        return False
      if (record["step"], record["kind"]) != (restored_step, "evaluation"):
        return True
      self._has_evaluation = not evaluates_again
      return self._has_evaluation

    self._file = open_lines(workdir, METRICS_FILE, _as_record, is_kept)

  @property
  def has_evaluation(self) -> bool:
    """Returns whether there is a record of the evaluation of the restored step."""
    return self._has_evaluation

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record and flushes it."""
    values = {name: None if _is_not_finite(value) else value for name, value in record.items()}
    self._file.append(json.dumps(values, allow_nan=False).encode() + b"\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class MetricsWriter:
  """Appends the records of a run. Use as a context manager, or call `close`."""

  def __init__(
    self,
    workdir: str,
    *,
    restored_step: int | None,
    evaluates_again: bool = False,
    loggers: Sequence[Logger] = (),
  ):
    """Opens the files and drops the records of steps that will be done again.

    Args:
      workdir: folder of the run.
      restored_step: step of the checkpoint that the run resumes from; None drops all records.
      evaluates_again: whether the evaluation of that step was cut short and will be done again.
      loggers: further loggers, which get the records too and are not closed.
    """
    folder = pathlib.Path(workdir)
    self._lines = JsonLinesLogger(
      folder, restored_step=restored_step, evaluates_again=evaluates_again
    )
    self._own = (self._lines, TensorBoardLogger(folder, restored_step=restored_step))
    self._loggers = (*self._own, *loggers)

  @property
  def has_evaluation(self) -> bool:
    """Returns whether there is a record of the evaluation of the restored step."""
    return self._lines.has_evaluation

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record and flushes it to the files.

    Args:
      record: "step" (int), "kind" (str) and further values: text, booleans, numbers, or arrays of
        one number.
    """
    values = {name: np.asarray(value).item() for name, value in record.items()}
    for logger in self._loggers:
      logger.write(values)

  def close(self) -> None:
    """Closes the files."""
    with contextlib.ExitStack() as closing:
      for logger in reversed(self._own):
        closing.callback(logger.close)

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()


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
    if one is None or _is_not_finite(one):
      one = math.nan
    elif name in _NUMBERS and is_number(one):
      # Of integers beyond 64 bits, NumPy makes an array of objects.
      one = float(one)
    elif name in _NUMBERS or not isinstance(one, str | bool | int | float):
      return None
    record[name] = one
  return record


def _is_not_finite(value: Any) -> bool:
  return isinstance(value, float) and not math.isfinite(value)
