"""What a person sees while a run is going, and the table at its end."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO


class ProgressLine:
  """One line that is rewritten on a terminal, and printed anew each time anywhere else."""

  def __init__(
    self,
    total_steps: int,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares; prints nothing.

    Args:
      total_steps: of the whole run.
      stream: where to print; None is standard output.
      clock: seconds, for the time left.
    """
    self._total_steps = total_steps
    self._stream = stream or sys.stdout
    self._clock = clock
    self._is_terminal = self._stream.isatty()
    self._line = ""
    self._first_step: int | None = None
    self._first_seconds = 0.0

  def update(self, record: Mapping[str, Any]) -> None:
    """Shows a train record: step, loss, learning_rate, images_per_second, data_wait_share."""
    step = record["step"]
    if self._first_step is None:
      # Time starts here, so that compilation does not count as speed.
      self._first_step, self._first_seconds = step, self._clock()
    width = len(str(self._total_steps))
    line = (
      f"step {step:{width}}/{self._total_steps}"
      f"  loss {record['loss']:.4f}"
      f"  learning rate {record['learning_rate']:.3g}"
      f"  {record['images_per_second']:.0f} images/s"
      f"  waiting for data {100 * record['data_wait_share']:.0f} %"
      f"  left {self._time_left(step)}"
    )
    if self._is_terminal:
      self._line = line
      self._write("\r" + line + "\x1b[K")
    else:
      self._write(line + "\n")

  def evaluation(self, record: Mapping[str, Any]) -> None:
    """Prints an evaluation record on its own line: step, loss, and top1, top5, ema if there."""
    parts = [f"loss {record['loss']:.4f}"]
    parts += [
      f"{label} {100 * record[name]:.2f} %"
      for name, label in (("top1", "top-1"), ("top5", "top-5"))
      if name in record
    ]
    network = "moving average" if record.get("ema") else "parameters"
    self.message(f"evaluation at step {record['step']} ({network}): {'  '.join(parts)}")

  def message(self, text: str) -> None:
    """Prints `text` on its own line, above the progress line."""
    if self._is_terminal:
      self._write("\r\x1b[K" + text + "\n" + self._line)
    else:
      self._write(text + "\n")

  def close(self) -> None:
    """Leaves the cursor on a fresh line."""
    if self._line:
      self._write("\n")
      self._line = ""

  def __enter__(self) -> "ProgressLine":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _time_left(self, step: int) -> str:
    steps = step - self._first_step
    if steps == 0:
      return "0:00:00" if step >= self._total_steps else "unknown"
    seconds_per_step = (self._clock() - self._first_seconds) / steps
    return format_duration(seconds_per_step * (self._total_steps - step))

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()


def summary(records: Sequence[Mapping[str, Any]], further: Mapping[str, str]) -> str:
  """The table at the end of a run.

  Args:
    records: of the whole run, as `train.metrics.read_metrics` gives them.
    further: rows to put first, such as the name and the number of parameters.
  """
  rows = list(further.items())
  if train := [record for record in records if record["kind"] == "train"]:
    speeds = sorted(record["images_per_second"] for record in train)
    waits = [record["data_wait_share"] for record in train]
    rows += [
      ("steps", str(train[-1]["step"])),
      ("last training loss", f"{train[-1]['loss']:.4f}"),
      ("median images/s", f"{speeds[len(speeds) // 2]:.0f}"),
      ("mean share of time waiting for data", f"{100 * sum(waits) / len(waits):.1f} %"),
    ]
  for ema, network in ((False, "parameters"), (True, "moving average")):
    evaluations = [
      record
      for record in records
      if record["kind"] == "evaluation" and bool(record.get("ema")) == ema
    ]
    if evaluations:
      last = evaluations[-1]
      rows.append((f"held-out loss, {network}", f"{last['loss']:.4f}"))
      if "top1" in last:
        best = max(evaluations, key=lambda r: -1.0 if math.isnan(r["top1"]) else r["top1"])
        rows.append(
          (
            f"held-out top-1, {network}",
            f"{100 * last['top1']:.2f} % (best {100 * best['top1']:.2f} % at step {best['step']})",
          )
        )
      if "top5" in last:
        rows.append((f"held-out top-5, {network}", f"{100 * last['top5']:.2f} %"))
  return format_table(rows)


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
  """Columns aligned to the left, two spaces apart; rules around it and below the header."""
  lines = [*([header] if header else []), *rows]
  widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  text = [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  ]
  if header:
    text.insert(1, rule)
  return "\n".join([rule, *text, rule])


def format_duration(seconds: float) -> str:
  """H:MM:SS, with days in front from one day on."""
  days, rest = divmod(round(seconds), 86_400)
  clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
  return f"{days} d {clock}" if days else clock
