"""Writes and reads the metrics of a run: metrics.jsonl, and TensorBoard event files beside it.

metrics.jsonl has one JSON object per line. Each has "step" and "kind":

- "train": means over the steps since the last such record;
- "evaluation": held-out scores; "ema" is true for those of the moving average;
- "event": something out of the ordinary, as "text". If the run stops because it has diverged,
  "fault" is `train.run.faults.DIVERGED`.

A number that is not finite is written as null, because JSON cannot express it, and read back as
NaN.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from nfnet.errors import UserError
from train.run.records.workdir import writing_to

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsWriter:
  """Appends the records of a run. Use as a context manager, or call `close`."""

  def __init__(self, workdir: str, *, restored_step: int | None, evaluates_again: bool = False):
    """Opens the files and drops the records of steps that will be done again.

    Args:
      workdir: folder of the run; created if needed.
      restored_step: step of the checkpoint that the run resumes from; None drops all records.
      evaluates_again: whether the evaluation of that step was cut short and will be done again.

    Raises:
      UserError: `workdir` cannot be written.
    """
    self._path = pathlib.Path(workdir) / METRICS_FILE
    with writing_to(self._path.parent):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      _drop_records_to_come(self._path, restored_step, evaluates_again)
      self._file = self._path.open("a", encoding="utf-8")
      folder = self._path.parent / TENSORBOARD_FOLDER
      folder.mkdir(exist_ok=True)
      # Not SummaryWriter: it writes from a thread, which dies on a full disk while its queue fills
      # up.
      self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
      # Tells TensorBoard to forget what earlier files have at these steps.
      self._write_event(
        step=0 if restored_step is None else restored_step + 1,
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
      )

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record and flushes it to both files.

    Args:
      record: "step" (int), "kind" (str) and further values: text, booleans, numbers, or arrays of
        one number.

    Raises:
      UserError: the disk is full.
    """
    values = {name: _as_json(value) for name, value in record.items()}
    group = values["kind"] + ("_ema" if values.get("ema") is True else "")
    with writing_to(self._path.parent):
      self._file.write(json.dumps(values, allow_nan=False) + "\n")
      self._file.flush()
      for name, value in values.items():
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
          self._write_event(values["step"], summary=scalar(f"{group}/{name}", value))
      self._events.flush()

  def close(self) -> None:
    """Closes both files."""
    # Each record was flushed when it was written, so closing can only repeat an error of writing.
    for file in (self._file, self._events):
      with contextlib.suppress(OSError):
        file.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _write_event(self, step: int, **content) -> None:
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the records in the order in which they were written.

  A last line that was cut short by a crash is left out.

  Args:
    path: a metrics.jsonl, or the workdir that holds it.

  Raises:
    UserError: there is no such file, or a line in it is not a record.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path /= METRICS_FILE
  try:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  except OSError as error:
    raise UserError(f"metrics file {str(path)!r} cannot be read: {error.strerror}") from error
  records = []
  for number, line in enumerate(lines, start=1):
    if not line.endswith("\n"):
      break
    try:
      record = json.loads(line)
      records.append({name: math.nan if value is None else value for name, value in record.items()})
    except (ValueError, AttributeError) as error:
      raise UserError(f"metrics file {str(path)!r}, line {number} is not a record") from error
  return records


def _drop_records_to_come(path: pathlib.Path, step: int | None, evaluates_again: bool) -> None:
  """Keeps the records up to a step, and without its evaluation if that will be done again."""
  if not path.exists():
    return
  kept = [] if step is None else [r for r in read_metrics(path) if r["step"] <= step]
  if evaluates_again:
    kept = [r for r in kept if (r["step"], r["kind"]) != (step, "evaluation")]
  temporary = path.with_suffix(".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    for record in kept:
      file.write(json.dumps({name: _as_json(value) for name, value in record.items()}) + "\n")
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def _as_json(value: Any) -> Any:
  """Returns a value that JSON can hold; None for a number that is not finite."""
  value = np.asarray(value).item()
  return None if isinstance(value, float) and not math.isfinite(value) else value
