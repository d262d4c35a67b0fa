"""What a person sees of a sweep: a table of its trials, redrawn in place, and the best rates."""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from train.report.table import format_table
from train.report.units import format_duration
from train.run.records.metrics import METRICS_FILE
from train.sweep.folder import DONE, FAILED, RUNNING, STATES, WAITING, Entry, SweepFolder
from train.sweep.results import best_results
from train.sweep.trial import as_text

DIVERGED = "diverged"
"""Shown in place of "failed", where the rate is to blame."""
HEADER = ("trial", "state", "step", "loss", "held-out", "top-1", "images/s", "left", "worker")

_REDRAW_SECONDS = 1.0
# Records are a few hundred bytes, and the newest of each kind are wanted.
_TAIL_BYTES = 1 << 16
_REASON_CHARACTERS_MAX = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One trial as it is now; None is what is not known.

  Attributes:
    name: of the trial.
    state: one of `STATES`, or `DIVERGED`.
    step: done.
    steps: of the whole run.
    loss: of training, nats.
    held_out_loss: nats.
    top1: held-out, a share.
    images_per_second: of training.
    left_seconds: of training, at that speed.
    note: the worker, or why it failed.
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
    """Under `HEADER`."""
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
    """Where there is no table: the state, and what belongs to it."""
    result = ""
    if self.state == DONE and self.held_out_loss is not None:
      result = f", held-out loss {self.held_out_loss:.4f}, top-1 {self.top1:.2%}"
    note = f" ({self.note})" if self.note else ""
    return f"{self.name}: {self.state}{result}{note}"


def table_rows(folder: SweepFolder, entries: Mapping[str, Entry]) -> list[Row]:
  """All trials, small and short first."""
  ordered = sorted(entries.values(), key=lambda entry: folder.trial(entry.name).order)
  return [_row(folder, entry) for entry in ordered]


def table_text(rows: Sequence[Row]) -> str:
  """All of them, below one another, and how many there are of each state."""
  return "\n".join([format_table([row.cells() for row in rows], HEADER), _counts(rows)])


def best_rates_text(results: Sequence[Mapping[str, Any]]) -> str:
  """The learning rate with the lowest loss, and that loss, by variant and epochs.

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
      row.append(f"{as_text(found['learning_rate'])} ({found['loss_nats']:.4f})" if found else "-")
    rows.append(row)
  header = ("best rate (held-out loss)", *(f"{as_text(one)} epochs" for one in epochs))
  return format_table(rows, header)


class LiveTable:
  """Redrawn in place on a terminal; one line for each change of a state anywhere else."""

  def __init__(
    self,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    terminal_size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
  ):
    """Prepares; prints nothing.

    Args:
      stream: where to print; None is standard output.
      clock: seconds.
      terminal_size: columns and lines.
    """
    self._stream = stream or sys.stdout
    self._clock = clock
    self._terminal_size = terminal_size
    self._is_terminal = self._stream.isatty()
    self._drawn_seconds = -math.inf
    self._drawn_lines = 0
    self._states: dict[str, tuple[str, str | None]] = {}

  def update(self, folder: SweepFolder, entries: Mapping[str, Entry]) -> None:
    """Shows the entries as they are now; to be called often."""
    if not self._is_terminal:
      self._print_changes(folder, entries)
    elif self._clock() - self._drawn_seconds >= _REDRAW_SECONDS:
      self._drawn_seconds = self._clock()
      self._draw(table_rows(folder, entries))

  def close(self) -> None:
    """Takes the table from the terminal."""
    if self._drawn_lines:
      self._write(f"\x1b[{self._drawn_lines}A\r\x1b[J")
      self._drawn_lines = 0

  def __enter__(self) -> "LiveTable":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def _print_changes(self, folder: SweepFolder, entries: Mapping[str, Entry]) -> None:
    changed = {
      name: entry
      for name, entry in entries.items()
      if self._states.get(name) != (entry.state, entry.worker)
    }
    for row in table_rows(folder, changed):
      self._write(row.as_line() + "\n")
    self._states.update({name: (e.state, e.worker) for name, e in changed.items()})

  def _draw(self, rows: Sequence[Row]) -> None:
    size = self._terminal_size()
    # Rules, header, counts, and the line below on which the cursor stands.
    room = max(1, size.lines - 6)
    shown = rows
    if len(rows) > room:
      # What happens now is most wanted, then what comes next.
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


def _row(folder: SweepFolder, entry: Entry) -> Row:
  trial = folder.trial(entry.name)
  if entry.state == DONE:
    result = entry.read()
    return Row(
      name=trial.name,
      state=DONE,
      step=trial.steps,
      steps=trial.steps,
      held_out_loss=result.get("loss_nats"),
      top1=1 - result["held_out_error_percent"] / 100 if result else None,
    )
  state, note, records = entry.state, entry.worker or "", {}
  if entry.state == FAILED:
    failure = entry.read()
    state = DIVERGED if failure.get("diverged") else FAILED
    note = failure.get("reason", "")
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
  """The last record of each kind, of a file that may be growing; its end is looked at alone."""
  records = {}
  try:
    with path.open("rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
      lines = file.read().decode(errors="replace").splitlines()
  except OSError:
    return {}
  for line in lines:
    # The first and the last one may be cut.
    with contextlib.suppress(ValueError, TypeError, KeyError):
      record = json.loads(line)
      records[record["kind"]] = {k: math.nan if v is None else v for k, v in record.items()}
  return records


def _counts(rows: Sequence[Row]) -> str:
  counts = collections.Counter(row.state for row in rows)
  return ", ".join(f"{counts[state]} {state}" for state in (*STATES, DIVERGED) if counts[state])


def _or_dash(value: float | None, text: str) -> str:
  return "-" if value is None else text.format(value)
