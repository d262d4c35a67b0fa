"""Tables of a sweep for people: its trials, redrawn in place on a terminal, and the best rates."""

import collections
import dataclasses
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from nfnet.errors import escaped
from nfnet.foreign_files.regular_files import open_regular
from train.report.table import format_table
from train.report.units import format_duration
from train.run.records.metrics import METRICS_FILE, parse_metrics_line
from train.sweep.folder import DONE, FAILED, RUNNING, STATES, WAITING, Entry, SweepFolder
from train.sweep.results import best_results, results
from train.sweep.trial import number_text

DIVERGED = "diverged"
"""State shown instead of "failed" for trials whose learning rate is to blame."""
HEADER = ("trial", "state", "step", "loss", "held-out", "top-1", "images/s", "left", "worker")

_REDRAW_SECONDS = 1.0
# Records have a few hundred bytes, and only the newest of each kind is needed.
_TAIL_BYTES = 1 << 16
_REASON_CHARACTERS_MAX = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One trial as it is now; unknown values are None.

  Attributes:
    name: name of the trial.
    state: one of `STATES`, or `DIVERGED`.
    step: last step that is done.
    steps: number of steps of the whole run.
    loss: training loss in nats.
    held_out_loss: held-out loss in nats.
    top1: held-out top-1 accuracy, from 0 to 1.
    images_per_second: speed of training.
    left_seconds: remaining time of training at that speed.
    note: the worker, or why the trial failed.
  """

  name: str
  state: str
  step: int | None
  steps: int
  loss: float | None = None
  held_out_loss: float | None = None
  top1: float | None = None
  images_per_second: float | None = None
  left_seconds: float | None = None
  note: str = ""

  def cells(self) -> tuple[str, ...]:
    """Returns the texts below `HEADER`."""
    return (
      self.name,
      self.state,
      f"{'-' if self.step is None else self.step}/{self.steps}",
      _or_dash(self.loss, "{:.4f}"),
      _or_dash(self.held_out_loss, "{:.4f}"),
      _or_dash(self.top1, "{:.2%}"),
      _or_dash(self.images_per_second, "{:.0f}"),
      "-" if self.left_seconds is None else format_duration(self.left_seconds),
      self.note,
    )

  def as_line(self) -> str:
    """Returns the state and its details in one line, for output without a table."""
    result = ""
    if self.state == DONE and self.held_out_loss is not None:
      result = f", held-out loss {self.held_out_loss:.4f}, top-1 {self.top1:.2%}"
    note = f" ({self.note})" if self.note else ""
    return f"{self.name}: {self.state}{result}{note}"


def table_rows(
  folder: SweepFolder, entries: Mapping[str, Entry], result_rows: Sequence[Mapping[str, Any]]
) -> list[Row]:
  """Returns a row for each trial, small and short trials first.

  Args:
    folder: folder of the sweep.
    entries: entries of the trials.
    result_rows: `train.sweep.results.results` of these.
  """
  ordered = sorted(entries.values(), key=lambda entry: folder.trial(entry.name).order)
  result_by_trial = {row["trial"]: row for row in result_rows}
  return [_row(folder, entry, result_by_trial.get(entry.name)) for entry in ordered]


def table_text(rows: Sequence[Row]) -> str:
  """Returns the table, and the number of trials in each state below it."""
  return "\n".join([format_table([row.cells() for row in rows], HEADER), _counts(rows)])


def best_rates_text(results: Sequence[Mapping[str, Any]]) -> str:
  """Tabulates the learning rate with the lowest loss, and that loss, by variant and epochs.

  Args:
    results: rows of results.csv.
  """
  sizes = {row["name"]: row["parameters"] for row in results}
  best = {(row["name"], row["epochs"]): row for row in best_results(results)}
  epochs = sorted({one for _, one in best})
  rows = []
  for variant in sorted(sizes, key=sizes.get):
    row = [variant]
    for one in epochs:
      found = best.get((variant, one))
      row.append(
        f"{number_text(found['learning_rate'])} ({found['loss_nats']:.4f})" if found else "-"
      )
    rows.append(row)
  header = ("best rate (held-out loss)", *(f"{number_text(one)} epochs" for one in epochs))
  return format_table(rows, header)


class LiveTable:
  """A table redrawn in place on a terminal; elsewhere, one line for each change of a state."""

  def __init__(
    self,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    terminal_size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
  ):
    """Prepares the table and prints nothing.

    Args:
      stream: stream to print to; None is standard output.
      clock: function that returns the current time in seconds.
      terminal_size: function that returns the columns and lines of the terminal.
    """
    self._stream = stream or sys.stdout
    self._clock = clock
    self._terminal_size = terminal_size
    self._is_terminal = self._stream.isatty()
    self._drawn_seconds = -math.inf
    self._drawn_lines = 0
    self._states: dict[str, tuple[str, str | None]] = {}

  def update(self, folder: SweepFolder, entries: Mapping[str, Entry]) -> None:
    """Shows the entries as they are now; meant to be called often."""
    if not self._is_terminal:
      self._print_changes(folder, entries)
    elif self._clock() - self._drawn_seconds >= _REDRAW_SECONDS:
      self._drawn_seconds = self._clock()
      self._draw(table_rows(folder, entries, results(folder, entries)))

  def close(self) -> None:
    """Removes the table from the terminal."""
    if self._drawn_lines:
      self._write(f"\x1b[{self._drawn_lines}A\r\x1b[J")
      self._drawn_lines = 0

  def __enter__(self) -> "LiveTable":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def _print_changes(self, folder: SweepFolder, entries: Mapping[str, Entry]) -> None:
    """Prints a line for each trial whose state or worker has changed."""
    changed = {
      name: entry
      for name, entry in entries.items()
      if self._states.get(name) != (entry.state, entry.worker)
    }
    for row in table_rows(folder, changed, results(folder, changed)):
      self._write(row.as_line() + "\n")
    self._states.update({name: (e.state, e.worker) for name, e in changed.items()})

  def _draw(self, rows: Sequence[Row]) -> None:
    """Draws the table over the previous one, with as many rows as the terminal has room for."""
    size = self._terminal_size()
    # Three rules, the header, the counts, and the line of the cursor below them take up space.
    room = max(1, size.lines - 6)
    shown = rows
    if len(rows) > room:
      # Running trials matter most, then failed and waiting ones.
      urgency = {RUNNING: 0, FAILED: 1, WAITING: 2, DIVERGED: 3, DONE: 4}
      urgent = sorted(rows, key=lambda row: urgency[row.state])[: room - 1]
      shown = [row for row in rows if row in urgent]
    text = table_text(shown).split("\n")
    text[-1] = _counts(rows)
    if len(shown) < len(rows):
      text.insert(-1, f"and {len(rows) - len(shown)} more")
    up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
    lines = "".join(line[: size.columns - 1] + "\x1b[K\n" for line in text)
    self._write(f"{up}\r{lines}\x1b[J")
    self._drawn_lines = len(text)

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()


def _row(folder: SweepFolder, entry: Entry, result: Mapping[str, Any] | None) -> Row:
  """Returns the row of one trial."""
  trial = folder.trial(entry.name)
  if entry.state == DONE:
    return Row(
      name=trial.name,
      state=DONE,
      step=trial.steps,
      steps=trial.steps,
      held_out_loss=result and result["loss_nats"],
      top1=result and 1 - result["held_out_error_percent"] / 100,
    )
  state, note, records = entry.state, escaped(entry.worker or ""), {}
  if entry.state == FAILED:
    failure = entry.read()
    state = DIVERGED if failure.get("diverged") else FAILED
    note = escaped(str(failure.get("reason", "")))
    if len(note) > _REASON_CHARACTERS_MAX:
      note = note[: _REASON_CHARACTERS_MAX - 3] + "..."
  records = _newest_records(folder.workdir(trial.name) / METRICS_FILE)
  training, evaluation = records.get("train", {}), records.get("evaluation", {})
  speed, left_seconds = training.get("images_per_second"), None
  if speed and entry.state == RUNNING:
    left_seconds = trial.images * (1 - training["step"] / trial.steps) / speed
  return Row(
    name=trial.name,
    state=state,
    step=training.get("step"),
    steps=trial.steps,
    loss=training.get("loss"),
    held_out_loss=evaluation.get("loss"),
    top1=evaluation.get("top1"),
    images_per_second=speed if entry.state == RUNNING else None,
    left_seconds=left_seconds,
    note=note,
  )


def _newest_records(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns the last record of each kind near the end of a file that may be growing."""
  records = {}
  try:
    with open_regular(path) as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
      lines = file.read().decode(errors="replace").splitlines()
  except OSError:
    return {}
  for line in lines:
    # The first and the last line may be cut off.
    if (record := parse_metrics_line(line)) is not None:
      records[record["kind"]] = record
  return records


def _counts(rows: Sequence[Row]) -> str:
  """Returns how many trials are in each state."""
  counts = collections.Counter(row.state for row in rows)
  return ", ".join(f"{counts[state]} {state}" for state in (*STATES, DIVERGED) if counts[state])


def _or_dash(value: float | None, text: str) -> str:
  """Formats a value; returns a dash for None."""
  return "-" if value is None else text.format(value)
