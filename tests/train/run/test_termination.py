"""SIGTERM and Ctrl-C to real runs: no step is lost, wherever they come."""

import os
import pathlib
import re
import signal
import time

import pytest

from nfnet.errors import UserError
from tests.processes import children, is_running, wait_for
from tests.train import runs
from train.audit_data import audit
from train.run.exit_codes import EXIT_INTERRUPTED, EXIT_TERMINATED
from train.run.records.goodput import DATA_WAIT
from train.run.records.metrics import read_metrics


def records(workdir):
  try:
    return read_metrics(str(workdir))
  except UserError:
    return []


def terminate(process, log, number=signal.SIGTERM):
  """Sends a signal to all that the run has started; returns the step after which the run ended."""
  for pid in children(process.pid):
    runs.send(pid, number)
  os.killpg(process.pid, number)
  started_seconds = time.monotonic()
  code, verb = {
    signal.SIGTERM: (EXIT_TERMINATED, "terminated"),
    signal.SIGINT: (EXIT_INTERRUPTED, "interrupted"),
  }[number]
  assert process.wait(timeout=60) == code
  # What Cloud TPU and Kubernetes grant.
  assert time.monotonic() - started_seconds < 30
  lines = pathlib.Path(log).read_text().splitlines()
  (line,) = (line for line in lines if line.startswith(verb))
  assert lines[-1] == line
  return int(re.match(rf"{verb} after step (\d+),", line)[1])


class Run:
  """A run that is started again and again, each time with so many data workers."""

  def __init__(self, data, folder):
    self._data = data
    self.workdir, self.log = folder / "run", folder / "log"

  def start(self, workers):
    self.log.unlink(missing_ok=True)
    return runs.start(self.workdir, self._data, self.log, session=True, **{"data.workers": workers})

  def has_trained(self, step):
    return any(r["step"] >= step for r in records(self.workdir))

  def replaces_a_killed_worker(self, process):
    """Kills the only worker; returns the one that takes its place."""
    (worker,) = children(process.pid)
    runs.send(worker, signal.SIGKILL)
    wait_for(lambda: any(r.get("worker_deaths") == 1 for r in records(self.workdir)), process)
    (event,) = (r["text"] for r in records(self.workdir) if r["kind"] == "event")
    assert event.startswith("a data worker was killed (SIGKILL, perhaps because memory ran out)")
    # An evaluation has a worker of its own, without which it would not end.
    wait_for(lambda: len(children(process.pid)) == 1, process)
    (other,) = children(process.pid)
    assert other != worker
    return other

  def ends_in_a_data_wait(self, process, worker):
    """Stops the only worker and terminates the run; returns after which step it ended."""
    # The storage hangs: the process that reads from it stops.
    runs.send(worker, signal.SIGSTOP)
    wait_for(lambda: runs.last_phases(self.workdir) == (DATA_WAIT,), process)
    step = terminate(process, self.log)
    assert step < runs.STEPS
    assert not is_running(worker)
    assert audit(str(self.workdir)).repeated_steps == 0
    return step

  def ends_in_an_evaluation(self, process, step, number=signal.SIGTERM):
    """Ends the run in the evaluation after a step, which follows the record of its training."""
    wait_for(lambda: self.has_trained(step), process)
    assert terminate(process, self.log, number) == step
    assert [r["kind"] for r in records(self.workdir) if r["step"] == step][:1] == ["train"]

  def dies_while_it_saves(self, process):
    wait_for(lambda: runs.is_saving(self.workdir), process)
    process.kill()
    process.wait()

  def ends_as(self, uninterrupted):
    """Comes to its end; returns how many starts have trained."""
    assert self.start(0).wait(timeout=500) == 0
    assert runs.final_sha256(self.workdir) == uninterrupted.final_sha256
    assert not runs.is_saving(self.workdir)
    found = audit(str(self.workdir))
    assert (found.steps, found.images) == (runs.STEPS, runs.STEPS * 16)
    return found.starts


def test_a_run_that_is_ended_and_killed_ends_as_if_nothing_had_happened(
  digits, uninterrupted, tmp_path
):
  run = Run(digits, tmp_path)
  process = run.start(1)
  run.ends_in_an_evaluation(process, 6, signal.SIGINT)
  process = run.start(1)
  wait_for(lambda: run.has_trained(7), process)
  run.ends_in_a_data_wait(process, run.replaces_a_killed_worker(process))
  run.dies_while_it_saves(run.start(0))
  assert run.ends_as(uninterrupted) == 4


@pytest.mark.slow
def test_no_step_is_lost_wherever_a_signal_comes(digits, uninterrupted, tmp_path):
  """One run is told to end in every phase, and killed; each start does what the one before left."""
  run = Run(digits, tmp_path)
  workdir, log, start = run.workdir, run.log, run.start

  # Between steps, after the first checkpoint.
  process = start(0)
  wait_for(lambda: run.has_trained(4), process)
  first = terminate(process, log, signal.SIGINT)
  assert first < runs.STEPS
  assert (workdir / "checkpoints" / str(first)).is_dir()

  evaluated = 6 * (first // 6 + 1)
  run.ends_in_an_evaluation(start(2), evaluated)

  process = start(1)
  wait_for(lambda: run.has_trained(evaluated + 1), process)
  # The kernel finds no more memory: the worker is replaced, and the same batches come.
  step = run.ends_in_a_data_wait(process, run.replaces_a_killed_worker(process))

  # While it compiles, and while it saves; only now steps are done again.
  process = start(0)
  wait_for(lambda: "compiling" in log.read_text(), process)
  process.kill()
  process.wait()
  assert audit(str(workdir)).steps == step
  run.dies_while_it_saves(start(0))
  # The one that died before its first step does not count.
  assert run.ends_as(uninterrupted) == 5
