"""Accounts for a run's time: an append-only ledger, and what it adds up to.

`goodput.jsonl` in the workdir has a line for each start of the run, a line for each step that it
continued from and, about once a second, a line with the seconds that each phase has taken since the
previous line. So a killed run loses at most about a second of the ledger; one that ends before it
knows the step that it continues from is not a start, and its time counts for the restart. The
phases split the time of the first process; time that it waits within a step is computation on the
devices.
Lines that are not records are left out (`train.run.records.bookkeeping`).
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from nfnet.errors import UserError
from nfnet.foreign_files.numbers import is_count, is_number
from train.report.table import format_table
from train.report.units import format_duration
from train.run.records.bookkeeping import Record, RecordFile, open_lines, read_lines
from train.step.sharding.mesh import cores_of

LEDGER_FILE = "goodput.jsonl"
START_UP, COMPILE, DATA_WAIT, STEP = "start-up", "compile", "data wait", "step"
CHECKPOINT, EVALUATION = "checkpoint", "evaluation"
LOST_WORK, RESTART = "lost work", "restart"
PHASES = (START_UP, COMPILE, DATA_WAIT, STEP, CHECKPOINT, EVALUATION, LOST_WORK, RESTART)
_LOST_WITH_ITS_STEP = frozenset({DATA_WAIT, STEP, CHECKPOINT, EVALUATION})
_SECONDS_BETWEEN_LINES = 1.0


class Ledger:
  """Writes the ledger of one start of the run. Use as a context manager, or call `close`.

  Phases nest: the time of an inner phase does not count for the outer one. Time outside all phases
  counts as start-up until the first step begins, and as steps from then on. Nothing is written
  before the run knows the step that it goes on from: a start that is refused does not count.
  """

  def __init__(self, workdir: str | None, *, began_seconds: float | None = None):
    """Begins with the start-up phase.

    Args:
      workdir: folder of the run. None writes nothing.
      began_seconds: `time.monotonic()` when start-up began; None is now.
    """
    # Guards the seconds. The training thread needs it at each change of phase, so nobody who has it
    # reads or writes a file, which may take long in a shared folder.
    self._lock = threading.Lock()
    self._file_lock = threading.Lock()
    self._phases = [START_UP]
    self._seconds: dict[str, float] = {}
    self._step = 0
    self._began_seconds = time.monotonic() if began_seconds is None else began_seconds
    self._last_seconds = self._began_seconds
    self._workdir = workdir
    self._file: RecordFile | None = None
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._write_regularly, name="ledger", daemon=True)

  def goes_on_from(self, step: int) -> None:
    """Records that the run is at this step now, so that all work beyond it is lost."""
    if self._workdir is not None and self._file is None:
      self._begin(self._workdir)
    self.write()
    self._step = step
    with self._file_lock:
      self._line({"goes_on_from_step": step})

  def begin_steps(self) -> None:
    """Ends the start-up phase."""
    self._add()
    self._phases[0] = STEP

  def step_done(self, step: int) -> None:
    """Sets the number of steps done."""
    self._step = step

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Counts the time spent inside the context towards one of `PHASES`."""
    self._add()
    self._phases.append(name)
    try:
      yield
    finally:
      self._add()
      self._phases.pop()

  def write(self) -> None:
    """Writes a line with the seconds so far, so that the next line begins with this step."""
    self._add()
    with self._file_lock:
      with self._lock:
        step, seconds, self._seconds = self._step, self._seconds, {}
      if seconds:
        self._line({"step": step, "seconds": seconds})

  def close(self) -> None:
    """Writes the last line and closes the file."""
    if self._file is None:
      return
    self._closed.set()
    self._thread.join()
    try:
      self.write()
    finally:
      self._file.close()

  def __enter__(self) -> "Ledger":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def _begin(self, workdir: str) -> None:
    """Opens the file, writes the line of this start, and begins to write regularly."""
    self._file = open_lines(pathlib.Path(workdir), LEDGER_FILE, _as_record)
    with self._file_lock:
      self._thread.start()
      self._line(
        {
          "started_unix_seconds": time.time() - (time.monotonic() - self._began_seconds),
          "cores": sum(cores_of(device) for device in jax.devices()),
          "device_kind": jax.devices()[0].device_kind,
        }
      )

  def _add(self) -> None:
    """Adds the time since the last call to the current phase."""
    with self._lock:
      now_seconds = time.monotonic()
      phase = self._phases[-1]
      self._seconds[phase] = self._seconds.get(phase, 0.0) + now_seconds - self._last_seconds
      self._last_seconds = now_seconds

  def _line(self, record: dict[str, Any]) -> None:
    if self._file is not None:
      self._file.append(json.dumps(record).encode() + b"\n")
      self._file.flush()

  def _write_regularly(self) -> None:
    while not self._closed.wait(_SECONDS_BETWEEN_LINES):
      # The main thread's next write will raise the error too.
      with contextlib.suppress(UserError):
        self.write()


def process_began_seconds() -> float:
  """Returns `time.monotonic()` when this process was started, or now if the system does not say."""
  try:
    # The start time is the 22nd field; the second is a name in parentheses, which may hold spaces.
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_seconds = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    age_seconds = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_seconds)
  except (OSError, AttributeError, IndexError, ValueError):
    age_seconds = 0.0
  return time.monotonic() - age_seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodput:
  """Totals of a ledger.

  Attributes:
    seconds: seconds by phase; their sum is the time from the first start to the last line.
    starts: number of starts of the run.
    productive_core_hours: core-hours of steps that were not lost, without waiting for data.
    total_core_hours: core-hours of all time in which a process held the devices.
  """

  seconds: dict[str, float]
  starts: int
  productive_core_hours: float
  total_core_hours: float

  @property
  def wall_seconds(self) -> float:
    """Returns the seconds from the first start to the last line."""
    return sum(self.seconds.values())


def read_goodput(workdir: str) -> Goodput:
  """Adds up the ledger of a run, which may still be going on.

  Args:
    workdir: folder of the run.

  Raises:
    UserError: there is no ledger.
  """
  path = pathlib.Path(workdir) / LEDGER_FILE
  try:
    return _add_up(read_lines(path, _as_record))
  except OSError as error:
    raise UserError(f"ledger {str(path)!r} cannot be read: {error.strerror}") from error


def _as_record(value: Any) -> Record | None:
  """Returns a JSON value if it is one of the three kinds of records, or None."""
  match value:
    case {"started_unix_seconds": seconds, "cores": cores}:
      is_sound = _is_duration(seconds) and is_count(cores)
    case {"goes_on_from_step": step}:
      is_sound = is_count(step)
    case {"step": step, "seconds": dict(seconds)}:
      is_sound = is_count(step) and all(
        phase in PHASES and _is_duration(value) for phase, value in seconds.items()
      )
    case _:
      is_sound = False
  return value if is_sound else None


def _is_duration(value: Any) -> bool:
  return is_number(value) and value >= 0


def _add_up(records: list[Record]) -> Goodput:
  done: list[tuple[int, float, dict[str, float]]] = []  # Step, cores, seconds by phase.
  restart_seconds = 0.0
  starts = 0
  ended_unix_seconds, cores = None, 0
  for record in records:
    if "started_unix_seconds" in record:
      starts += 1
      if ended_unix_seconds is not None:
        # The clocks of two machines may differ by more than the pause, which would then be
        # negative.
        restart_seconds += max(0.0, record["started_unix_seconds"] - ended_unix_seconds)
      ended_unix_seconds, cores = record["started_unix_seconds"], record["cores"]
    elif "goes_on_from_step" in record:
      done = [
        (step, n, _lost(seconds)) if step > record["goes_on_from_step"] else (step, n, seconds)
        for step, n, seconds in done
      ]
    else:
      # As floats: integers of any size would add up beyond them.
      seconds = {phase: float(value) for phase, value in record["seconds"].items()}
      done.append((record["step"], cores, seconds))
      # The line of the first start may be damaged.
      if ended_unix_seconds is not None:
        ended_unix_seconds += sum(seconds.values())
  totals = dict.fromkeys(PHASES, 0.0)
  for _, _, seconds in done:
    for phase, value in seconds.items():
      totals[phase] += value
  totals[RESTART] = restart_seconds
  return Goodput(
    seconds=totals,
    starts=starts,
    productive_core_hours=sum(n * seconds.get(STEP, 0.0) for _, n, seconds in done) / 3600,
    total_core_hours=sum(n * sum(seconds.values()) for _, n, seconds in done) / 3600,
  )


def _lost(seconds: dict[str, float]) -> dict[str, float]:
  """Moves seconds that are lost with their step to the phase for lost work."""
  lost = sum(value for phase, value in seconds.items() if phase in _LOST_WITH_ITS_STEP)
  kept = {phase: value for phase, value in seconds.items() if phase not in _LOST_WITH_ITS_STEP}
  return {**kept, LOST_WORK: kept.get(LOST_WORK, 0.0) + lost}


def as_text(goodput: Goodput) -> str:
  """Formats the totals as a table."""
  wall_seconds = goodput.wall_seconds
  rows = [
    (
      phase,
      f"{goodput.seconds[phase]:.1f}",
      f"{goodput.seconds[phase] / max(wall_seconds, 1e-9):.1%}",
    )
    for phase in PHASES
  ]
  rows.append(("total", f"{wall_seconds:.1f}", format_duration(wall_seconds)))
  share = goodput.productive_core_hours / max(goodput.total_core_hours, 1e-9)
  return "\n".join(
    [
      format_table(rows, ("phase", "seconds", "of all")),
      f"starts: {goodput.starts}; core-hours: {goodput.productive_core_hours:.4g} productive of "
      f"{goodput.total_core_hours:.4g} ({share:.1%})",
    ]
  )
