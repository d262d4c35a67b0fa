"""Shows the progress of a run on a line of text."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from train.report.units import format_duration


class ProgressLine:
  """Shows one line, which is rewritten on a terminal and printed each time anywhere else."""

  def __init__(
    self,
    total_steps: int,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares the line and prints nothing.

    Args:
      total_steps: number of steps of the whole run.
      stream: stream to print to; None is standard output.
      clock: function that returns seconds, from which the time left is computed.
    """
    self._total_steps = total_steps
    self._stream = stream or sys.stdout
    self._clock = clock
    self._is_terminal = self._stream.isatty()
    self._line = ""
    self._first_step: int | None = None
    self._first_seconds = 0.0

  def update(self, record: Mapping[str, Any]) -> None:
    """Shows a training record.

    Args:
      record: must have step, loss, learning_rate, images_per_second and data_wait_share.
    """
    step = record["step"]
    if self._first_step is None:
      # Timing starts at the first record, so that compilation does not affect the time left.
      self._first_step, self._first_seconds = step, self._clock()
    width = len(str(self._total_steps))
    line = (
      f"step {step:{width}}/{self._total_steps}"
      f"  loss {record['loss']:.4f}"
      f"  learning rate {record['learning_rate']:.3g}"
      f"  {record['images_per_second']:.0f} images/s"
      f"  waiting for data {100 * record['data_wait_share']:.0f} %"
      f"  remaining {self._time_left(step)}"
    )
    if self._is_terminal:
      self._line = line
      self._write("\r" + line + "\x1b[K")
    else:
      self._write(line + "\n")

  def evaluation(self, record: Mapping[str, Any]) -> None:
    """Prints an evaluation record on its own line.

    Args:
      record: must have step and loss, may have top1, top5 and ema.
    """
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
