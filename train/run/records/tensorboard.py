"""Writes the numbers in the records of a run for TensorBoard, to event files in its workdir."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from nfnet.foreign_files.numbers import is_number
from train.run.records.bookkeeping import make_place, report_unwritable

TENSORBOARD_FOLDER = "tensorboard"


class TensorBoardLogger:
  """A `train.run.records.loggers.Logger` that writes one event file."""

  def __init__(self, workdir: pathlib.Path, *, restored_step: int | None):
    """Opens a file, which makes TensorBoard forget the steps that will be done again.

    Args:
      workdir: folder of the run.
      restored_step: step of the checkpoint that the run resumes from; None if it begins.
    """
    self._workdir = workdir
    make_place(workdir, TENSORBOARD_FOLDER, folder=True)
    self._events: EventsWriter | None = None
    with self._writing_events():
      # Not SummaryWriter: it writes from a thread, which dies on a full disk while its queue fills
      # up.
      self._events = EventsWriter(
        str(workdir / TENSORBOARD_FOLDER / "events"), filename_suffix=f".{time.time_ns()}"
      )
      # Tells TensorBoard to forget what earlier files have at these steps.
      self._write_event(
        step=0 if restored_step is None else restored_step + 1,
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
      )

  def write(self, record: Mapping[str, Any]) -> None:
    """Writes the finite numbers of a record and flushes them."""
    group = record["kind"] + ("_ema" if record.get("ema") is True else "")
    with self._writing_events():
      for name, value in record.items():
        if name != "step" and is_number(value):
          self._write_event(record["step"], summary=scalar(f"{group}/{name}", value))
      if self._events is not None:
        self._events.flush()

  def close(self) -> None:
    """Closes the file."""
    with self._writing_events():
      if self._events is not None:
        self._events.close()

  def _write_event(self, step: int, **content) -> None:
    if self._events is not None:
      self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

  @contextlib.contextmanager
  def _writing_events(self) -> Iterator[None]:
    """Gives the file up if it cannot be written: it may have got a part of an event."""
    try:
      yield
    except OSError as error:
      self._events = None
      report_unwritable(self._workdir, TENSORBOARD_FOLDER, error)
