"""SIGTERM to real runs: no step is lost, wherever it comes."""

import pathlib
import re
import signal
import time

import pytest

from nfnet.errors import UserError
from tests.train import runs
from train.audit_data import audit
from train.run.records.goodput import DATA_WAIT
from train.run.records.metrics import read_metrics
from train.run.termination import EXIT_TERMINATED

STEPS = runs.FIELDS["schedule.train_steps"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(digits, cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  assert runs.start(workdir, digits, cache, f"{workdir}.log").wait(timeout=500) == 0
  return workdir


def wait_for(process, is_true):
  while not is_true():
    assert process.poll() is None
    time.sleep(0.01)


def records(workdir):
  try:
    return read_metrics(str(workdir))
  except UserError:
    return []


def terminate(process, log):
  """The step after which it ended."""
  process.send_signal(signal.SIGTERM)
  started_seconds = time.monotonic()
  assert process.wait(timeout=60) == EXIT_TERMINATED
  # What Cloud TPU and Kubernetes grant.
  assert time.monotonic() - started_seconds < 30
  lines = pathlib.Path(log).read_text().splitlines()
  (line,) = (line for line in lines if line.startswith("terminated"))
  return int(re.match(r"terminated after step (\d+),", line)[1])


def assert_nothing_is_lost(workdir, step, digits, cache, log, uninterrupted):
  assert (workdir / "checkpoints" / str(step)).is_dir()
  assert runs.start(workdir, digits, cache, log).wait(timeout=500) == 0
  assert f"resuming after step {step};" in pathlib.Path(log).read_text()
  assert runs.final_sha256(workdir) == runs.final_sha256(uninterrupted)
  found = audit(str(workdir))
  assert (found.starts, found.steps, found.repeated_steps) == (2, STEPS, 0)
  # The same records: an evaluation that was cut short is made up for.
  ours, theirs = (
    [(r["step"], r["kind"], r.get("ema"), r["loss"]) for r in records(one)]
    for one in (workdir, uninterrupted)
  )
  assert ours == theirs


def test_between_steps(digits, cache, uninterrupted, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = runs.start(workdir, digits, cache, log)
  # A step without a checkpoint.
  wait_for(process, lambda: any(r["step"] >= 5 for r in records(workdir)))
  step = terminate(process, log)
  assert step < STEPS
  assert_nothing_is_lost(workdir, step, digits, cache, log, uninterrupted)


def test_in_an_evaluation(digits, cache, uninterrupted, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = runs.start(workdir, digits, cache, log)
  # The record of step 8's training is written before its evaluation begins.
  wait_for(process, lambda: any(r["step"] == 8 for r in records(workdir)))
  assert terminate(process, log) == 8
  assert [r["kind"] for r in records(workdir) if r["step"] == 8] == ["train"]
  assert_nothing_is_lost(workdir, 8, digits, cache, log, uninterrupted)


def test_while_it_waits_for_data(digits, cache, uninterrupted, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = runs.start(workdir, digits, cache, log, **{"data.workers": 1})
  wait_for(process, lambda: any(r["step"] >= 5 for r in records(workdir)))
  # The storage hangs: the processes that read from it stop.
  children = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
  stopped = [int(pid) for file in children for pid in file.read_text().split()]
  assert stopped
  for pid in stopped:
    runs.send(pid, signal.SIGSTOP)
  wait_for(process, lambda: runs.last_phases(workdir) == (DATA_WAIT,))
  try:
    step = terminate(process, log)
  finally:
    # One of them cleans up what the run has shared, once it is over.
    for pid in stopped:
      runs.send(pid, signal.SIGCONT)
  assert step < STEPS
  assert_nothing_is_lost(workdir, step, digits, cache, log, uninterrupted)
