"""SIGTERM and Ctrl-C to real runs: no step is lost, wherever they come."""

import os
import pathlib
import re
import signal
import time

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


def assert_nothing_is_lost(workdir, step, digits, log, uninterrupted):
  assert (workdir / "checkpoints" / str(step)).is_dir()
  assert runs.start(workdir, digits, log).wait(timeout=500) == 0
  assert f"resuming after step {step};" in pathlib.Path(log).read_text()
  assert runs.final_sha256(workdir) == uninterrupted.final_sha256
  found = audit(str(workdir))
  assert (found.starts, found.steps, found.repeated_steps) == (2, runs.STEPS, 0)
  # The same records: an evaluation that was cut short is made up for.
  ours, theirs = (
    [(r["step"], r["kind"], r.get("ema"), r["loss"]) for r in records(one) if r["kind"] != "event"]
    for one in (workdir, uninterrupted.workdir)
  )
  assert ours == theirs


def test_between_steps(digits, uninterrupted, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = runs.start(workdir, digits, log, session=True)
  # After the first checkpoint.
  wait_for(lambda: any(r["step"] >= 5 for r in records(workdir)), process)
  step = terminate(process, log, signal.SIGINT)
  assert step < runs.STEPS
  assert_nothing_is_lost(workdir, step, digits, log, uninterrupted)


def test_in_an_evaluation(digits, uninterrupted, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = runs.start(workdir, digits, log, session=True, **{"data.workers": 2})
  # The record of step 6's training is written before its evaluation begins.
  wait_for(lambda: any(r["step"] == 6 for r in records(workdir)), process)
  assert terminate(process, log) == 6
  assert [r["kind"] for r in records(workdir) if r["step"] == 6] == ["train"]
  assert_nothing_is_lost(workdir, 6, digits, log, uninterrupted)


def test_while_it_waits_for_data(digits, uninterrupted, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = runs.start(workdir, digits, log, session=True, **{"data.workers": 1})
  wait_for(lambda: any(r["step"] >= 3 for r in records(workdir)), process)
  # The kernel finds no more memory: the worker is replaced, and the same batches come.
  (worker,) = children(process.pid)
  runs.send(worker, signal.SIGKILL)
  wait_for(lambda: any(r.get("worker_deaths") == 1 for r in records(workdir)), process)
  (event,) = (r["text"] for r in records(workdir) if r["kind"] == "event")
  assert event.startswith("a data worker was killed (SIGKILL, perhaps because memory ran out)")
  # An evaluation has a worker of its own, without which it would not end.
  wait_for(lambda: len(children(process.pid)) == 1, process)
  # The storage hangs: the process that reads from it stops.
  (stopped,) = children(process.pid)
  assert stopped != worker
  runs.send(stopped, signal.SIGSTOP)
  wait_for(lambda: runs.last_phases(workdir) == (DATA_WAIT,), process)
  step = terminate(process, log)
  assert step < runs.STEPS
  assert not is_running(stopped)
  assert_nothing_is_lost(workdir, step, digits, log, uninterrupted)
