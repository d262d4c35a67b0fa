"""The reports of a run: records in metrics.jsonl and for loggers, and the progress line.

With several processes, only the first one writes them; in the others, all calls do nothing.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from train.run.processes import is_first
from train.run.progress import ProgressLine
from train.run.records.loggers import Logger
from train.run.records.metrics import MetricsWriter


class Reports:
  """Writes the metrics and shows the progress. Use as a context manager, or call `close`."""

  def __init__(
    self,
    workdir: str,
    *,
    total_steps: int,
    step: int,
    evaluates_again: bool,
    loggers: Sequence[Logger] = (),
  ):
    """Drops the records of steps that will be done again.

    Args:
      workdir: folder of the run.
      total_steps: number of steps of the whole run.
      step: number of steps done; 0 drops all records.
      evaluates_again: whether the evaluation of `step` was cut short and will be done again.
      loggers: loggers that get the records too; they stay open.
    """
    self._is_first = is_first()
    self._open = contextlib.ExitStack()
    if self._is_first:
      self._metrics = self._open.enter_context(
        MetricsWriter(
          workdir,
          restored_step=step or None,
          evaluates_again=evaluates_again,
          loggers=loggers,
        )
      )
      self._progress = self._open.enter_context(ProgressLine(total_steps))

  @property
  def has_evaluation(self) -> bool:
    """Returns whether the evaluation of the step that the run resumes from is on record."""
    return self._is_first and self._metrics.has_evaluation

  def close(self) -> None:
    """Closes the files and ends the progress line."""
    self._open.close()

  def __enter__(self) -> "Reports":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def message(self, text: str) -> None:
    """Prints a line for the person who started the run."""
    if self._is_first:
      self._progress.message(text)

  def event(self, step: int, text: str) -> None:
    """Prints and records something out of the ordinary.

    Args:
      step: number of the step at which it happened.
      text: description of what happened.
    """
    if self._is_first:
      self._metrics.write({"step": step, "kind": "event", "text": text})
      self._progress.message(text)

  def fault(self, step: int, text: str, fault: str) -> None:
    """Records why the run is about to stop; the error that follows prints the text.

    Args:
      step: number of the step at which it happened.
      text: description of what happened.
      fault: kind of fault that other programs recognize, such as `train.run.faults.DIVERGED`.
    """
    if self._is_first:
      self._metrics.write({"step": step, "kind": "event", "text": text, "fault": fault})

  def training(self, record: dict[str, Any]) -> None:
    """Records and shows metrics of the steps since the last record."""
    if self._is_first:
      self._metrics.write(record)
      self._progress.update(record)

  def evaluation(self, record: dict[str, Any]) -> None:
    """Records and shows an evaluation of the parameters or of their moving average."""
    if self._is_first:
      self._metrics.write(record)
      self._progress.evaluation(record)
