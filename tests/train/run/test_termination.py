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


def test_no_step_is_lost_wherever_a_signal_comes(digits, uninterrupted, tmp_path):
  """One run is told to end in every phase, and killed; each start does what the one before left."""
  workdir, log = tmp_path / "run", tmp_path / "log"

  def start(workers):
    log.unlink(missing_ok=True)
    return runs.start(workdir, digits, log, session=True, **{"data.workers": workers})

  def has_trained(step):
    return any(r["step"] >= step for r in records(workdir))

  # Between steps, after the first checkpoint.
  process = start(0)
  wait_for(lambda: has_trained(4), process)
  first = terminate(process, log, signal.SIGINT)
  assert first < runs.STEPS
  assert (workdir / "checkpoints" / str(first)).is_dir()

  # In an evaluation, which follows the record of its step's training.
  evaluated = 6 * (first // 6 + 1)
  process = start(2)
  wait_for(lambda: has_trained(evaluated), process)
  assert terminate(process, log) == evaluated
  assert [r["kind"] for r in records(workdir) if r["step"] == evaluated][:1] == ["train"]

  process = start(1)
  wait_for(lambda: has_trained(evaluated + 1), process)
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
  assert audit(str(workdir)).repeated_steps == 0

  # While it compiles, and while it saves; only now steps are done again.
  process = start(0)
  wait_for(lambda: "compiling" in log.read_text(), process)
  process.kill()
  process.wait()
  assert audit(str(workdir)).steps == step
  process = start(0)
  wait_for(lambda: runs.is_saving(workdir), process)
  process.kill()
  process.wait()

  assert start(0).wait(timeout=500) == 0
  assert runs.final_sha256(workdir) == uninterrupted.final_sha256
  assert not runs.is_saving(workdir)
  found = audit(str(workdir))
  # The one that died before its first step does not count.
  assert (found.starts, found.steps, found.images) == (5, runs.STEPS, runs.STEPS * 16)
