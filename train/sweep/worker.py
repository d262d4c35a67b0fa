"""A worker: takes trials from the sweep folder and runs them until nothing is left to run."""

import contextlib
import dataclasses
import math
import os
import pathlib
import shlex
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from nfnet.errors import UserError
from nfnet.foreign_files.numbers import is_count
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.module_process import module_command, module_environment
from nfnet.weights.checkpoint_reader import newest_step
from train.run.exit_codes import EXIT_DONE, EXIT_IN_USE, FINAL_EXIT_CODES, shell_exit_code
from train.run.faults import DIVERGED
from train.run.records.metrics import read_metrics
from train.sweep.claim import Claim, claim_trial, worker_name
from train.sweep.dead_workers import DeadWorkerWatch
from train.sweep.folder import DONE, FAILED, RUNNING, WAITING, Entry, SweepFolder, open_log
from train.sweep.learning_rate_search import Cell, proposals
from train.sweep.plan import Plan, make_trial
from train.sweep.results import finished_trials, read_result, results, write_results
from train.sweep.stop import Stop
from train.sweep.trial import Trial
from train.sweep.trial_table import LiveTable

STARTS_MAX = 5
"""Number of starts without a new checkpoint after which a trial fails, e.g. for lack of memory."""
FAILURES_IN_A_ROW_MAX = 3
"""Number of failed trials in a row after which the worker ends: its machine may be the cause."""
TRIAL_PROGRAM = tuple(module_command("train.sweep.trial_process"))
"""Command that runs a trial; its arguments follow."""

_POLL_SECONDS = 0.5
_IDLE_SECONDS = 2.0
_IN_USE_SECONDS = 10.0
_LOG_TAIL_BYTES = 2**20
_LINE_CHARACTERS_MAX = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ended:
  """The end of a trial's process.

  Attributes:
    exit_code: exit code as a shell reports it, 128 + signal after a signal.
    last_line: last line that it printed, or its error message if there is one.
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
    program: tuple[str, ...] = TRIAL_PROGRAM,
  ):
    """Prepares the worker without touching the folder.

    Args:
      plan: plan of the sweep.
      folder: folder of the sweep, made by `SweepFolder.create`.
      silent_seconds_max: time without a sign of life after which another worker counts as dead.
      stop: listener for the signals that tell the worker to end.
      table: table that shows the trials.
      further_arguments: arguments of each `train.pretrain` besides those of the plan.
      program: command that runs a trial, given the grace period and the arguments of
        `train.pretrain`.
    """
    self._plan = plan
    self._cells = plan.cells() if plan.is_search else {}
    self._folder = folder
    self._silent_seconds_max = silent_seconds_max
    self._stop = stop
    self._table = table
    self._further_arguments = further_arguments
    self._program = program
    self._name = worker_name()
    self._watch = DeadWorkerWatch(silent_seconds_max)
    self._failures_in_a_row = 0

  def work(self) -> None:
    """Runs trials until all are done or have failed, by this worker or by others.

    Raises:
      UserError: the folder cannot be written or is gone, or too many trials failed in a row.
      Terminated: after SIGTERM, when the trial has been given back.
      KeyboardInterrupt: after Ctrl-C, when the trial has been given back.
    """
    for trial in self._plan.trials():
      self._folder.add(trial)
    while True:
      self._stop.raise_if_requested()
      # A folder that was renamed, removed or emptied looks like a sweep that is done.
      self._folder.check()
      entries, abandoned = self._look()
      if self._add_searched(entries):
        entries, abandoned = self._look()
      claim = self._take(entries, abandoned)
      if claim is not None:
        self._run(claim)
      elif any(entry.state in (WAITING, RUNNING) for entry in entries.values()):
        # Another worker may die, or its result may determine what is run next.
        self._stop.wait(_IDLE_SECONDS)
      else:
        return

  def _look(self) -> tuple[dict[str, Entry], list[Entry]]:
    """Shows the table; returns all entries, and the entries whose workers are dead."""
    entries = self._folder.entries()
    abandoned = self._watch.abandoned(entries)
    self._table.update(self._folder, entries)
    return entries, abandoned

  def _add_searched(self, entries: Mapping[str, Entry]) -> bool:
    """Adds the trials that the search wants now; returns whether there are any."""
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
    """Returns the cells with trials under way, and those with a failed or deleted trial."""
    busy, given_up = set(), set()
    for name in self._folder.names():
      entry = entries.get(name)
      cell = self._folder.trial(name).cell
      if entry is None or is_failed(entry):
        given_up.add(cell)
      elif entry.state in (WAITING, RUNNING):
        busy.add(cell)
    return busy, given_up

  def _take(self, entries: Mapping[str, Entry], abandoned: list[Entry]) -> Claim | None:
    """Claims the trial of a dead worker, or else the smallest and shortest waiting trial."""
    waiting = [entry for entry in entries.values() if entry.state == WAITING]
    waiting.sort(key=lambda entry: self._folder.trial(entry.name).order)
    for entry in (*abandoned, *waiting):
      claim = claim_trial(self._folder, entry, self._name)
      if claim is not None:
        return claim
    return None

  def _run(self, claim: Claim) -> None:
    """Runs a claimed trial until it has another state."""
    trial = self._folder.trial(claim.name)
    before = claim.read()
    try:
      checkpoint_step = newest_step(self._folder.workdir(trial.name)) or 0
    except UserError as error:
      # The other trials can be run nevertheless.
      self._fail(claim, str(error))
      return
    has_advanced = checkpoint_step > _number(before, "checkpoint_step", -1)
    starts = 0 if has_advanced else _number(before, "starts", 0)

    def started(times: int) -> dict[str, int]:
      return {"starts": times, "checkpoint_step": checkpoint_step}

    if starts >= STARTS_MAX:
      last_line = _last_line(self._folder.log(trial.name), 0)
      self._fail(claim, f"started {starts} times without a further checkpoint; {last_line}")
      return
    with claim:
      # The start is counted beforehand, because the trial may kill its worker.
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
      elif ended.exit_code == EXIT_IN_USE:
        # By the training of a worker that was taken for dead, which will end it. Nothing was tried.
        self._stop.wait(_IN_USE_SECONDS)
        claim.move(WAITING, started(starts))
      else:
        claim.move(WAITING, started(starts if self._stop.is_requested() else starts + 1))

  def _train(self, claim: Claim, trial: Trial) -> _Ended | None:
    """Runs the trial's process to its end; returns None if another worker has the trial by now."""
    log = self._folder.log(trial.name)
    arguments = [
      *self._plan.arguments(trial.variant, trial.epochs, trial.learning_rate),
      f"--workdir={self._folder.workdir(trial.name)}",
      *self._further_arguments,
    ]
    with contextlib.ExitStack() as opened:
      with self._folder.writing():
        file = opened.enter_context(open_log(log))
        began = file.tell()
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        line = f"{when}  {self._name}: python -m train.pretrain {shlex.join(arguments)}\n"
        file.write(line.encode())
      process = subprocess.Popen(
        [
          *self._program,
          *(str(self._silent_seconds_max / 2), *arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=file,
        stderr=subprocess.STDOUT,
        env=module_environment(),
        # Ctrl-C in a terminal must reach only the worker, which then ends the trial.
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
    """Returns the exit code of a trial's process; None if another worker has the trial by now."""
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
      # If the shared folder does not answer for a moment, the training need not end.
      with contextlib.suppress(UserError, OSError):
        self._look()

  def _finish(self, claim: Claim, trial: Trial) -> None:
    """Moves a trial whose training has succeeded to its final state."""
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
    entries = self._folder.entries()
    write_results(self._folder, entries, results(self._folder, entries))

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
  """Returns whether the trial failed for a reason other than its learning rate."""
  return entry.state == FAILED and not entry.read().get("diverged")


def has_diverged(workdir: pathlib.Path) -> bool:
  """Returns whether the last record in a run's metrics.jsonl says that the run has diverged."""
  try:
    records = read_metrics(workdir)
  except UserError:
    return False
  return bool(records) and records[-1].get("fault") == DIVERGED


def _number(content: Mapping[str, Any], name: str, default: int) -> int:
  """Returns a count in an entry; `default` where it has none or is damaged."""
  value = content.get(name)
  return value if is_count(value) else default


def _last_line(log: pathlib.Path, began: int) -> str:
  """Returns the last line written from a byte offset on, or the last error if there is one."""
  try:
    with open_regular(log) as file:
      file.seek(max(began, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
      lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
  except OSError as error:
    return f"its log cannot be read: {error.strerror}"
  errors = [line for line in lines if line.startswith("error: ")]
  printed = errors or [line for line in lines if line]
  last = (printed or ["it printed nothing"])[-1].removeprefix("error: ")
  # It reaches the terminal of whoever looks at the sweep.
  return "".join(c if c.isprintable() else "?" for c in last[:_LINE_CHARACTERS_MAX])
