"""A worker and the end of its trials: real processes, which end as they are told to."""

import io
import os
import pathlib
import signal
import sys
import threading

import pytest

from nfnet.errors import UserError
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.processes import wait_for
from tests.repository import ROOT
from tests.train.sweep import short_training
from tests.train.sweep.short_training import KILLED, LONG
from train.run.exit_codes import EXIT_IN_USE, EXIT_LOST_PROCESS, EXIT_TERMINATED
from train.run.faults import DIVERGED
from train.run.records.metrics import MetricsWriter
from train.sweep import worker as worker_module
from train.sweep.claim import claim_trial
from train.sweep.folder import DONE, FAILED, RUNNING, WAITING, SweepFolder
from train.sweep.plan import load_plan
from train.sweep.stop import Stop
from train.sweep.trial_table import LiveTable
from train.sweep.worker import STARTS_MAX, Worker, is_failed

NAME = "P0_epochs-{}_rate-0.1"


@pytest.fixture
def make(tmp_path):
  """Gives a folder with trials of these budgets, and a worker."""

  def make_worker(stop, epochs, **options):
    (tmp_path / "plan.toml").write_text(
      f'config = "{ROOT}/train/configs/demo_pretrain.py"\n'
      f'variants = ["P0"]\nepochs = {epochs}\nlearning_rates = [0.1]\n'
    )
    plan = load_plan(str(tmp_path / "plan.toml"))
    folder = SweepFolder(tmp_path / "sweep")
    folder.create(plan.fixed)
    for trial in plan.trials():
      folder.add(trial)
    worker = Worker(
      plan,
      folder,
      stop=stop,
      table=LiveTable(stream=io.StringIO()),
      program=(sys.executable, short_training.__file__),
      **{"silent_seconds_max": 60, **options},
    )
    return folder, worker

  return make_worker


def test_exit_codes_decide(make):
  with Stop() as stop, group_umask():
    folder, worker = make(stop, [1, KILLED], further_arguments=("--compilation_cache=/nowhere",))
    worker.work()
  entries = folder.entries()
  assert {entry.state for entry in entries.values()} == {FAILED}
  assert all(map(is_failed, entries.values()))
  failure = entries[NAME.format(1)].read()
  assert (failure["reason"], failure["exit_code"]) == ("last words", 1)
  assert pathlib.Path(failure["log"]).read_text().count("last words") == 1
  # What could end otherwise is tried again.
  failure = entries[NAME.format(KILLED)].read()
  assert failure["reason"] == f"started {STARTS_MAX} times without a further checkpoint; last words"
  log = pathlib.Path(failure["log"]).read_text()
  assert log.count("python -m train.pretrain") == log.count("last words") == STARTS_MAX
  assert log.count("--compilation_cache=/nowhere") == STARTS_MAX
  assert modes_beside_group_umask(folder.path) == {}


def test_a_trial_whose_data_workers_are_always_killed_is_given_up(make):
  name = NAME.format(EXIT_LOST_PROCESS)
  with Stop() as stop:
    folder, worker = make(stop, [EXIT_LOST_PROCESS])
    worker.work()
  entry = folder.entries()[name]
  assert is_failed(entry)
  assert entry.read()["reason"].startswith(f"started {STARTS_MAX} times without a further checkpoi")
  assert folder.log(name).read_text().count("last words") == STARTS_MAX


def test_a_run_that_diverged_has_not_failed(make):
  name = NAME.format(2)
  with Stop() as stop:
    folder, worker = make(stop, [2])
    # What `train.run.loop` writes before it stops.
    folder.workdir(name).mkdir()
    with MetricsWriter(str(folder.workdir(name)), restored_step=None) as metrics:
      metrics.write({"step": 3, "kind": "event", "text": "any", "fault": DIVERGED})
    worker.work()
  entry = folder.entries()[name]
  assert (entry.state, entry.read()["diverged"], entry.read()["exit_code"]) == (FAILED, True, 2)
  assert not is_failed(entry)


def test_starts_are_counted_from_the_last_progress(make):
  with Stop() as stop:
    folder, worker = make(stop, [KILLED])
    name = NAME.format(KILLED)
    claim = claim_trial(folder, folder.entries()[name], "dead.1.2")
    # The workers died of it, but it had come to step 100 before.
    claim.move(WAITING, {"starts": 9, "checkpoint_step": 90})
    (folder.workdir(name) / "checkpoints" / "100").mkdir(parents=True)
    worker.work()
  assert folder.log(name).read_text().count("last words") == STARTS_MAX


def test_what_is_wrong_with_one_trial_does_not_keep_the_others_from_being_run(make):
  def spoil(name, place):
    path = folder.trial_folder(name) / place
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)

  with Stop() as stop:
    folder, worker = make(stop, [1, 1.5])
    spoil(NAME.format(1), "run/checkpoints")
    spoil(NAME.format(1.5), "log.txt")
    worker.work()
  entries = folder.entries()
  assert {entry.state for entry in entries.values()} == {FAILED}
  assert "checkpoints' cannot be listed: Too many" in entries[NAME.format(1)].read()["reason"]
  assert entries[NAME.format(1.5)].read()["exit_code"] == 1


@pytest.mark.parametrize("state", [FAILED, RUNNING])
def test_a_folder_of_entries_that_is_gone_ends_the_worker(make, state):
  """It would run the trial again and again, or wait forever for whoever has it."""
  with Stop() as stop:
    folder, worker = make(stop, [1], silent_seconds_max=0.5)
    (folder.path / state).rmdir()
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
      worker.work()
  assert folder.log(NAME.format(1)).exists() == (state == FAILED)
  folder.create(worker._plan.fixed)
  with Stop() as stop:
    worker.work()
  assert [entry.state for entry in folder.entries().values()] == [FAILED]


def test_a_sweep_folder_that_was_replaced_is_not_a_sweep_that_is_done(make, tmp_path):
  with Stop() as stop:
    folder, worker = make(stop, [1, 1.5])
    run = worker._run

    def replace_folder(claim):
      run(claim)
      folder.path.rename(tmp_path / "renamed")
      folder.path.mkdir()

    worker._run = replace_folder
    with pytest.raises(UserError, match="sweep': there is no sweep"):
      worker.work()
  assert not list(folder.path.iterdir())


def test_a_dead_workers_trial_is_taken_over(make):
  with Stop() as stop:
    folder, worker = make(stop, [1], silent_seconds_max=0.5)
    claim_trial(folder, folder.entries()[NAME.format(1)], "dead.1.2")
    worker.work()
  assert [entry.state for entry in folder.entries().values()] == [FAILED]
  assert folder.log(NAME.format(1)).read_text().count("last words") == 1


def test_a_worker_whose_trials_all_fail_ends(make):
  with Stop() as stop:
    folder, worker = make(stop, [1, 1.5, 2, 2.5])
    with pytest.raises(UserError, match=r"3 trials in a row failed here.*_epochs-2_.*: last words"):
      worker.work()
  assert [entry.state for entry in folder.entries().values()] == [WAITING, *[FAILED] * 3]


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


def test_a_training_is_ended_when_another_worker_has_the_trial(make):
  name = NAME.format(LONG)

  def take_over():
    pid = folder.trial_folder(name) / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    other = claim_trial(folder, folder.entries()[name], "other.1.2")
    wait_for(lambda: not pathlib.Path(f"/proc/{pid.read_text()}").exists())
    other.move(DONE, {})

  with Stop() as stop:
    folder, worker = make(stop, [LONG])
    thread, failures = in_thread(take_over)
    worker.work()
    thread.join()
  assert not failures
  # This worker has left no trace.
  assert [entry.read() for entry in folder.entries().values()] == [{}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_gives_back(make, number):
  name = NAME.format(LONG)
  before = signal.getsignal(number)

  def tell():
    pid = folder.trial_folder(name) / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    assert folder.entries()[name].read()["starts"] == 1
    os.kill(os.getpid(), number)

  with Stop() as stop:
    folder, worker = make(stop, [LONG])
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
  assert not pathlib.Path(f"/proc/{(folder.trial_folder(name) / 'pid').read_text()}").exists()
  entry = folder.entries()[name]
  # It does not count as a start that came to nothing.
  assert (entry.state, entry.read()["starts"]) == (WAITING, 0)


def test_an_idle_worker_can_be_told_to_end(make):
  with Stop() as stop:
    folder, worker = make(stop, [LONG])
    claim_trial(folder, folder.entries()[NAME.format(LONG)], "other.1.2")
    thread, failures = in_thread(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
      worker.work()
    thread.join()
  assert not failures
  assert folder.entries()[NAME.format(LONG)].state == RUNNING


def test_a_trial_whose_workdir_is_in_use_is_tried_until_it_is_not(make, monkeypatch):
  """The training of a worker that has stood still for a while may still be using it."""
  monkeypatch.setattr(worker_module, "_IN_USE_SECONDS", 0.0)
  name = NAME.format(EXIT_IN_USE)

  def tell():
    tries = STARTS_MAX + 1
    log = folder.log(name)
    wait_for(lambda: log.exists() and log.read_text().count("last words") > tries)
    os.kill(os.getpid(), signal.SIGTERM)

  with Stop() as stop:
    folder, worker = make(stop, [EXIT_IN_USE])
    thread, failures = in_thread(tell)
    with pytest.raises(SystemExit):
      worker.work()
    thread.join()
  assert not failures
  entry = folder.entries()[name]
  assert (entry.state, entry.read()["starts"]) == (WAITING, 0)
