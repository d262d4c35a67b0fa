"""How a worker takes what becomes of a trial: real processes that end as they are told to."""

import io
import json
import os
import pathlib
import signal
import threading
import time

import pytest

from nfnet.errors import UserError
from tests.repository import ROOT
from train.run.termination import EXIT_TERMINATED
from train.sweep import folder as sweep_folder
from train.sweep import worker as sweep_worker
from train.sweep.folder import DONE, FAILED, RUNNING, WAITING, SweepFolder
from train.sweep.plan import load_plan
from train.sweep.results import read_result
from train.sweep.table import LiveTable
from train.sweep.worker import Stop, Worker, is_failed

# The budget says how the training is to end.
CONFIG = """
import os, pathlib, signal, sys, time
from train.config.files import load_experiment

KILLED, LONG = 137, 600

def experiment(epochs: float = 1.0):
  if pathlib.Path(sys.argv[0]).name == "pretrain.py":
    pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
    print("last words", flush=True)
    if epochs == KILLED:
      os.kill(os.getpid(), signal.SIGKILL)
    if epochs == LONG:
      time.sleep(60)
      os._exit(2)
    os._exit(int(epochs))
  return load_experiment("{root}/train/configs/demo_pretrain.py")
"""
NAME = "P0_epochs-{}_rate-0.1"


@pytest.fixture
def make(tmp_path):
  """Gives a folder with trials of these budgets, and a worker."""

  def make_worker(stop, epochs, **options):
    (tmp_path / "config.py").write_text(CONFIG.replace("{root}", str(ROOT)))
    (tmp_path / "plan.toml").write_text(
      f'config = "{tmp_path}/config.py:epochs={{epochs}}"\n'
      f'variants = ["P0"]\nepochs = {epochs}\nlearning_rates = [0.1]\n'
    )
    plan = load_plan(str(tmp_path / "plan.toml"))
    folder = SweepFolder(tmp_path / "sweep")
    folder.create(plan.fixed)
    for trial in plan.trials():
      folder.add(trial)
    table = LiveTable(stream=io.StringIO())
    return folder, Worker(plan, folder, stop=stop, table=table, silent_seconds_max=60, **options)

  return make_worker


def test_exit_codes_decide(make, monkeypatch):
  monkeypatch.setattr(sweep_worker, "STARTS_MAX", 2)
  with Stop() as stop:
    folder, worker = make(stop, [1, 137], further_arguments=("--compilation_cache=/nowhere",))
    worker.work()
  entries = folder.entries()
  assert {entry.state for entry in entries.values()} == {FAILED}
  assert all(map(is_failed, entries.values()))
  failure = entries[NAME.format(1)].read()
  assert (failure["reason"], failure["exit_code"]) == ("last words", 1)
  assert pathlib.Path(failure["log"]).read_text().count("last words") == 1
  # What could end otherwise is tried again.
  failure = entries[NAME.format(137)].read()
  assert failure["reason"] == "started 2 times without a further checkpoint; last words"
  log = pathlib.Path(failure["log"]).read_text()
  assert log.count("python -m train.pretrain") == log.count("last words") == 2
  assert log.count("--compilation_cache=/nowhere") == 2


def test_starts_are_counted_from_the_last_progress(make, monkeypatch):
  monkeypatch.setattr(sweep_worker, "STARTS_MAX", 2)
  with Stop() as stop:
    folder, worker = make(stop, [137])
    name = NAME.format(137)
    claim = folder.claim(folder.entries()[name], "dead.1.2")
    # The workers died of it, but it had come to step 100 before.
    claim.move(WAITING, {"starts": 9, "checkpoint_step": 90})
    (folder.workdir(name) / "checkpoints" / "100").mkdir(parents=True)
    worker.work()
  assert folder.log(name).read_text().count("last words") == 2


def test_a_worker_whose_trials_all_fail_ends(make, monkeypatch):
  monkeypatch.setattr(sweep_worker, "FAILURES_IN_A_ROW_MAX", 1)
  with Stop() as stop:
    folder, worker = make(stop, [1, 2])
    with pytest.raises(UserError, match=r"1 trials in a row failed here.*_epochs-1_.*: last words"):
      worker.work()
  assert [entry.state for entry in folder.entries().values()] == [WAITING, FAILED]


def wait_for(is_true):
  until_seconds = time.monotonic() + 60
  while not is_true():
    assert time.monotonic() < until_seconds
    time.sleep(0.02)


def in_thread(function):
  """Runs it beside the worker; what it raises ends the test."""
  failures = []

  def run():
    try:
      function()
    except BaseException as error:
      failures.append(error)
      os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=run)
  thread.start()
  return thread, failures


def test_a_training_is_ended_when_another_worker_has_the_trial(make, tmp_path, monkeypatch):
  monkeypatch.setattr(sweep_folder, "BEAT_SECONDS", 0.1)
  name = NAME.format(600)

  def take_over():
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    other = folder.claim(folder.entries()[name], "other.1.2")
    wait_for(lambda: not pathlib.Path(f"/proc/{pid.read_text()}").exists())
    other.move(DONE, {})

  with Stop() as stop:
    folder, worker = make(stop, [600])
    thread, failures = in_thread(take_over)
    worker.work()
    thread.join()
  assert not failures
  # This worker has left no trace.
  assert [entry.read() for entry in folder.entries().values()] == [{}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_gives_back(make, tmp_path, number):
  name = NAME.format(600)
  before = signal.getsignal(number)

  def tell():
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    assert folder.entries()[name].read()["starts"] == 1
    os.kill(os.getpid(), number)

  with Stop() as stop:
    folder, worker = make(stop, [600])
    thread, failures = in_thread(tell)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as raised:
      worker.work()
    thread.join()
  assert not failures
  if number == signal.SIGTERM:
    assert raised.value.code == EXIT_TERMINATED
  else:
    assert raised.type is KeyboardInterrupt
  assert signal.getsignal(number) == before
  assert not pathlib.Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
  entry = folder.entries()[name]
  # It does not count as a start that came to nothing.
  assert (entry.state, entry.read()["starts"]) == (WAITING, 0)


def test_an_idle_worker_can_be_told_to_end(make):
  with Stop() as stop:
    folder, worker = make(stop, [600])
    folder.claim(folder.entries()[NAME.format(600)], "other.1.2")
    thread, failures = in_thread(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
      worker.work()
    thread.join()
  assert not failures
  assert folder.entries()[NAME.format(600)].state == RUNNING


def test_the_result_is_that_of_the_average_at_the_last_step(make, tmp_path):
  with Stop() as stop:
    folder, _ = make(stop, [3])
  trial = folder.trial(NAME.format(3))
  record = {"kind": "evaluation", "loss": 3.0, "top1": 0.25, "ema": False}
  records = [
    {**record, "step": 10, "loss": 1.0, "ema": True},
    {**record, "step": trial.steps, "loss": 2.5, "ema": True},
    {**record, "step": trial.steps},
  ]

  def result_of(some):
    text = "".join(json.dumps(one) + "\n" for one in some)
    (tmp_path / "metrics.jsonl").write_text(text)
    return read_result(tmp_path, trial)

  assert (result_of(records)["loss_nats"], result_of(records)["held_out_error_percent"]) == (
    2.5,
    75,
  )
  assert result_of(records[2:])["loss_nats"] == 3.0
  with pytest.raises(UserError, match="no evaluation of the last step"):
    result_of(records[:1])
