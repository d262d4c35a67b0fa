"""A worker: takes trials from the sweep folder and runs them until there is nothing left to run."""

import contextlib
import dataclasses
import math
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from nfnet.errors import UserError
from train.run.exit_codes import EXIT_DONE, FINAL_EXIT_CODES, shell_exit_code
from train.run.faults import DIVERGED
from train.run.records.metrics import read_metrics
from train.run.termination import Terminated
from train.sweep.folder import (
  DONE,
  FAILED,
  RUNNING,
  WAITING,
  Claim,
  Entry,
  SilenceWatch,
  SweepFolder,
  worker_name,
)
from train.sweep.learning_rate_search import Cell, proposals
from train.sweep.plan import Plan, make_trial
from train.sweep.results import finished_trials, read_result, write_results
from train.sweep.table import LiveTable
from train.sweep.trial import Trial

STARTS_MAX = 5
"""Starts of a trial without a further checkpoint, after which it has failed: out of memory, say."""
FAILURES_IN_A_ROW_MAX = 3
"""Trials that fail one after the other, after which the worker ends: it may be the machine."""

_POLL_SECONDS = 0.5
_IDLE_SECONDS = 2.0


class Stop:
  """Listens for SIGTERM and Ctrl-C. Use as a context manager, in the main thread."""

  def __init__(self):
    self._requested: int | None = None
    self._previous: dict[int, Any] = {}

  def is_requested(self) -> bool:
    """Whether to end."""
    return self._requested is not None

  def wait(self, seconds: float) -> None:
    """Sleeps, but not beyond a request."""
    # Waiting for a threading.Event that a handler in the same thread sets can last for ever.
    end_seconds = time.monotonic() + seconds
    while not self.is_requested() and time.monotonic() < end_seconds:
      time.sleep(min(0.1, seconds))

  def raise_if_requested(self) -> None:
    """Ends the process as the signal wants.

    Raises:
      Terminated: after SIGTERM.
      KeyboardInterrupt: after Ctrl-C.
    """
    if self.is_requested():
      raise KeyboardInterrupt if self._requested == signal.SIGINT else Terminated

  def __enter__(self) -> "Stop":
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._request)
    return self

  def __exit__(self, *unused_exception) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _request(self, number: int, unused_frame: FrameType | None) -> None:
    self._requested = number
    # Who presses Ctrl-C again does not want to wait for a checkpoint.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ended:
  """How a trial's process ended.

  Attributes:
    exit_code: as a shell counts it, 128 + signal.
    last_line: that it printed; its error, where it has one.
  """

  exit_code: int
  last_line: str


class Worker:
  """One worker of a sweep."""

  def __init__(
    self,
    plan: Plan,
    folder: SweepFolder,
    *,
    silent_seconds_max: float,
    stop: Stop,
    table: LiveTable,
    further_arguments: tuple[str, ...] = (),
  ):
    """Prepares; touches nothing.

    Args:
      plan: what is to run.
      folder: made by `SweepFolder.create`.
      silent_seconds_max: after which another worker counts as dead.
      stop: when to end.
      table: to show how it goes.
      further_arguments: of each `train.pretrain`.
    """
    self._plan = plan
    self._cells = plan.cells() if plan.is_search else {}
    self._folder = folder
    self._silent_seconds_max = silent_seconds_max
    self._stop = stop
    self._table = table
    self._further_arguments = further_arguments
    self._name = worker_name()
    self._watch = SilenceWatch(silent_seconds_max)
    self._failures_in_a_row = 0

  def work(self) -> None:
    """Runs trials until all are done or have failed, by this worker or by others.

    Raises:
      UserError: the folder cannot be written, or too many trials failed in a row.
      Terminated: after SIGTERM, when the trial is given back; KeyboardInterrupt likewise.
    """
    for trial in self._plan.trials():
      self._folder.add(trial)
    while True:
      self._stop.raise_if_requested()
      entries, silent = self._look()
      if self._add_searched(entries):
        entries, silent = self._look()
      claim = self._take(entries, silent)
      if claim is not None:
        self._run(claim)
      elif any(entry.state in (WAITING, RUNNING) for entry in entries.values()):
        # Another worker may die, or what it finds out decide what is next.
        self._stop.wait(_IDLE_SECONDS)
      else:
        return

  def _look(self) -> tuple[dict[str, Entry], list[Entry]]:
    """All entries, of which it shows the table, and those whose workers are dead."""
    entries = self._folder.entries()
    silent = self._watch.silent(entries)
    self._table.update(self._folder, entries)
    return entries, silent

  def _add_searched(self, entries: Mapping[str, Entry]) -> bool:
    """Adds the trials that the search wants now; whether there are any."""
    if not self._plan.is_search:
      return False
    busy, given_up = self._busy_and_given_up(entries)
    wanted = proposals(
      self._cells,
      finished_trials(self._folder, entries.values()),
      start_learning_rate=self._plan.start_learning_rate,
      busy=busy,
      given_up=given_up,
    )
    for cell, rate in wanted:
      variant, epochs = self._cells[cell]
      self._folder.add(make_trial(self._plan, variant, epochs, rate))
    return bool(wanted)

  def _busy_and_given_up(self, entries: Mapping[str, Entry]) -> tuple[set[Cell], set[Cell]]:
    """Cells whose trials are under way; those with one that failed or that somebody deleted."""
    busy, given_up = set(), set()
    for name in self._folder.names():
      entry = entries.get(name)
      cell = self._folder.trial(name).cell
      if entry is None or is_failed(entry):
        given_up.add(cell)
      elif entry.state in (WAITING, RUNNING):
        busy.add(cell)
    return busy, given_up

  def _take(self, entries: Mapping[str, Entry], silent: list[Entry]) -> Claim | None:
    """What a dead worker has left, or else the smallest and shortest trial that waits."""
    waiting = [entry for entry in entries.values() if entry.state == WAITING]
    waiting.sort(key=lambda entry: self._folder.trial(entry.name).order)
    for entry in (*silent, *waiting):
      claim = self._folder.claim(entry, self._name)
      if claim is not None:
        return claim
    return None

  def _run(self, claim: Claim) -> None:
    """From the claim to another state of the trial."""
    trial = self._folder.trial(claim.name)
    before = claim.read()
    checkpoint_step = _newest_checkpoint(self._folder.workdir(trial.name))
    got_on = checkpoint_step > before.get("checkpoint_step", -1)
    starts = 0 if got_on else before.get("starts", 0)

    def started(times: int) -> dict[str, int]:
      return {"starts": times, "checkpoint_step": checkpoint_step}

    if starts >= STARTS_MAX:
      last_line = _last_line(self._folder.log(trial.name), 0)
      self._fail(claim, f"started {starts} times without a further checkpoint; {last_line}")
      return
    with claim:
      # Counted before it is over, because it may be the trial that kills its worker.
      claim.write(started(starts + 1))
      try:
        ended = self._train(claim, trial)
      except BaseException:
        claim.move(WAITING, started(starts))
        raise
      if ended is None:
        return
      if ended.exit_code == EXIT_DONE:
        self._finish(claim, trial)
      elif ended.exit_code in FINAL_EXIT_CODES:
        self._fail(
          claim,
          ended.last_line,
          exit_code=ended.exit_code,
          # Another rate may do better, so divergence is a result of the search.
          diverged=has_diverged(self._folder.workdir(trial.name)),
        )
      else:
        claim.move(WAITING, started(starts if self._stop.is_requested() else starts + 1))

  def _train(self, claim: Claim, trial: Trial) -> _Ended | None:
    """Runs the trial's process to its end; None if the trial is another worker's by now."""
    log = self._folder.log(trial.name)
    arguments = [
      *self._plan.arguments(trial.variant, trial.epochs, trial.learning_rate),
      f"--workdir={self._folder.workdir(trial.name)}",
      *self._further_arguments,
    ]
    with contextlib.ExitStack() as opened:
      with self._folder.writing():
        file = opened.enter_context(log.open("a", encoding="utf-8"))
        began = file.tell()
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"{when}  {self._name}: python -m train.pretrain {shlex.join(arguments)}\n")
        file.flush()
      process = subprocess.Popen(
        [
          *(sys.executable, "-m", "train.sweep.trial_process"),
          *(str(self._silent_seconds_max / 2), *arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=file,
        stderr=subprocess.STDOUT,
        # A terminal's Ctrl-C is for the worker, which then ends the trial.
        start_new_session=True,
      )
      opened.enter_context(process)
      try:
        code = self._wait(process, claim)
      except BaseException:
        process.kill()
        raise
    if code is None:
      return None
    return _Ended(exit_code=shell_exit_code(code), last_line=_last_line(log, began))

  def _wait(self, process: subprocess.Popen, claim: Claim) -> int | None:
    is_told = False
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_POLL_SECONDS)
      if self._stop.is_requested() and not is_told:
        process.terminate()
        is_told = True
      if claim.is_lost(self._silent_seconds_max):
        # Two processes must not write to one workdir.
        process.kill()
        return None
      # A share that does not answer for a moment is no reason to end a training.
      with contextlib.suppress(UserError, OSError):
        self._look()

  def _finish(self, claim: Claim, trial: Trial) -> None:
    try:
      result = read_result(self._folder.workdir(trial.name), trial)
    except UserError as error:
      self._fail(claim, str(error))
      return
    if not math.isfinite(result["loss_nats"]):
      self._fail(claim, f"held-out loss is {result['loss_nats']}", diverged=True)
      return
    claim.move(DONE, result)
    self._failures_in_a_row = 0
    write_results(self._folder)

  def _fail(
    self, claim: Claim, reason: str, *, exit_code: int | None = None, diverged: bool = False
  ) -> None:
    claim.move(
      FAILED,
      {
        "reason": reason,
        "exit_code": exit_code,
        "diverged": diverged,
        "log": str(self._folder.log(claim.name)),
      },
    )
    self._failures_in_a_row = 0 if diverged else self._failures_in_a_row + 1
    if self._failures_in_a_row == FAILURES_IN_A_ROW_MAX:
      raise UserError(
        f"{FAILURES_IN_A_ROW_MAX} trials in a row failed here, so this worker ends; the last one "
        f"is {claim.name}: {reason}"
      )


def is_failed(entry: Entry) -> bool:
  """Whether the trial failed for another reason than its learning rate."""
  return entry.state == FAILED and not entry.read().get("diverged")


def has_diverged(workdir: pathlib.Path) -> bool:
  """Returns whether the last record of a run in metrics.jsonl says that it stopped by diverging."""
  try:
    records = read_metrics(workdir)
  except UserError:
    return False
  return bool(records) and records[-1].get("fault") == DIVERGED


def _newest_checkpoint(workdir: pathlib.Path) -> int:
  """Its step; 0 if there is none."""
  names = [path.name for path in workdir.glob("checkpoints/*")]
  return max((int(name) for name in names if name.isdecimal()), default=0)


def _last_line(log: pathlib.Path, began: int) -> str:
  """Of what was written from an offset on, in bytes; the last error where there is one."""
  with log.open("rb") as file:
    file.seek(began)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
  errors = [line for line in lines if line.startswith("error: ")]
  printed = errors or [line for line in lines if line]
  return (printed or ["it printed nothing"])[-1].removeprefix("error: ")
