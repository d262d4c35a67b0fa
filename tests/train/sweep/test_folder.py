"""The states of a sweep's trials: claims under races, workers that die, crashes in between."""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from nfnet.errors import UserError
from tests.repository import ROOT
from train.sweep import folder as sweep_folder
from train.sweep.folder import (
  DONE,
  FAILED,
  RUNNING,
  WAITING,
  SilenceWatch,
  SweepFolder,
  worker_name,
)
from train.sweep.trial import Trial, trial_name

FIXED = {"config": "a.py", "overrides": ["--config.seed=1"]}


def make_trial(learning_rate=0.1):
  return Trial(
    name=trial_name("P0", 0.5, learning_rate),
    variant="P0",
    epochs=0.5,
    learning_rate=learning_rate,
    parameters=1000,
    steps=10,
    images=160,
    compute_flops=10**9,
  )


@pytest.fixture
def folder(tmp_path):
  made = SweepFolder(tmp_path / "sweep")
  made.create(FIXED)
  return made


@pytest.fixture
def trial(folder):
  """One that waits."""
  one = make_trial()
  assert folder.add(one)
  return one


def state(folder, trial):
  return folder.entries()[trial.name].state


def together(count, function):
  """Results of so many threads that call it at the same time."""
  barrier = threading.Barrier(count)

  def call(i):
    barrier.wait()
    return function(i)

  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return list(pool.map(call, range(count)))


def test_a_trial_goes_through_its_states(folder, trial):
  assert trial.name == "P0_epochs-0.5_rate-0.1"
  assert (folder.path / "waiting" / trial.name).is_file()
  claim = folder.claim(folder.entries()[trial.name], "host.1.2")
  (running,) = (folder.path / "running").iterdir()
  assert running.name == f"{trial.name}@host.1.2"
  entry = folder.entries()[trial.name]
  assert (entry.state, entry.worker) == (RUNNING, "host.1.2")
  claim.move(WAITING, {"starts": 1})
  assert folder.entries()[trial.name].read() == {"starts": 1}
  claim = folder.claim(folder.entries()[trial.name], "host.1.2")
  assert claim.read() == {"starts": 1}
  claim.move(DONE, {"loss": 1.5})
  assert json.loads((folder.path / "done" / trial.name).read_text()) == {"loss": 1.5}
  assert not list((folder.path / "running").iterdir())
  assert folder.trial(trial.name) == trial
  assert SweepFolder(folder.path).trial(trial.name) == trial


def test_a_trial_is_added_once(folder, trial):
  assert not folder.add(trial)
  claim = folder.claim(folder.entries()[trial.name], "host.1.2")
  assert not folder.add(trial)
  claim.move(DONE, {})
  assert not folder.add(trial)
  assert state(folder, trial) == DONE


def test_of_many_that_add_a_trial_one_does(folder):
  every = [make_trial(rate) for rate in range(1, 31)]
  added = together(8, lambda _: [folder.add(trial) for trial in every])
  assert [sum(column) for column in zip(*added, strict=True)] == [1] * len(every)
  assert len(list((folder.path / "waiting").iterdir())) == len(every)
  assert {path.name for path in (folder.path / "trials").iterdir()} == {t.name for t in every}


def test_who_died_while_adding_loses_no_trial(folder, trial):
  os.rename(folder.path / "waiting" / trial.name, folder.trial_folder(trial.name) / "entry")
  assert state(folder, trial) == WAITING
  assert (folder.path / "waiting" / trial.name).is_file()


def test_a_deleted_entry_leaves_the_trial_out(folder, trial):
  (folder.path / "waiting" / trial.name).unlink()
  assert folder.entries() == {}
  assert not folder.add(trial)
  assert folder.names() == {trial.name}


RACE = """
import sys, time
from train.sweep.folder import SweepFolder
folder = SweepFolder(sys.argv[1])
entries = folder.entries()
print("ready", flush=True)
sys.stdin.readline()
won = [name for name in sorted(entries) if folder.claim(entries[name], sys.argv[2])]
print(*won)
"""


@pytest.mark.parametrize("dead", [False, True], ids=["waiting", "of a dead worker"])
def test_of_many_processes_that_claim_a_trial_one_gets_it(folder, dead):
  names = set()
  for rate in range(1, 101):
    trial = make_trial(rate)
    folder.add(trial)
    names.add(trial.name)
    if dead:
      folder.claim(folder.entries()[trial.name], "dead.1.2")
  racers = [
    subprocess.Popen(
      [sys.executable, "-c", RACE, folder.path, f"racer.{i}.0"],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(3)
  ]
  for racer in racers:
    assert racer.stdout.readline() == "ready\n"
  for racer in racers:
    racer.stdin.write("go\n")
    racer.stdin.flush()
  won = {}
  for i, racer in enumerate(racers):
    output, _ = racer.communicate(timeout=60)
    assert racer.returncode == 0
    won[f"racer.{i}.0"] = output.split()
  assert collections.Counter(itertools.chain(*won.values())) == dict.fromkeys(names, 1)
  for name, entry in folder.entries().items():
    assert entry.state == RUNNING
    assert name in won[entry.worker]


def test_of_many_threads_that_claim_a_trial_one_gets_it(folder):
  for rate in range(1, 101):
    folder.add(make_trial(rate))
  entries = folder.entries()
  claims = together(
    8, lambda i: [folder.claim(entries[name], f"racer.{i}.0") for name in sorted(entries)]
  )
  for column in zip(*claims, strict=True):
    assert sum(claim is not None for claim in column) == 1


def test_a_claim_whose_answer_was_lost_is_noticed(folder, trial, monkeypatch):
  """A client of NFS may ask again for what was done, and hear that the file is gone."""
  rename = os.rename

  def lose_answer(source, target):
    rename(source, target)
    raise FileNotFoundError

  entry = folder.entries()[trial.name]
  monkeypatch.setattr(os, "rename", lose_answer)
  assert folder.claim(entry, "host.1.2") is not None


def test_a_worker_shows_life_while_it_has_a_claim(folder, trial, monkeypatch):
  monkeypatch.setattr(sweep_folder, "BEAT_SECONDS", 0.01)
  seen = set()
  with folder.claim(folder.entries()[trial.name], "host.1.2") as claim:
    until_seconds = time.monotonic() + 10
    while len(seen) < 4:
      assert time.monotonic() < until_seconds
      assert not claim.is_lost(60)
      seen.add(folder.entries()[trial.name].path.stat().st_mtime_ns)


def test_a_silent_worker_is_noticed_by_the_clock_of_who_watches(folder, trial):
  now_seconds = 1000.0
  watch = SilenceWatch(100, clock=lambda: now_seconds)

  def silent():
    return [entry.worker for entry in watch.silent(folder.entries())]

  folder.claim(folder.entries()[trial.name], "host.1.2")
  (running,) = (folder.path / "running").iterdir()
  # The clock of the server, or of the worker, is days off.
  os.utime(running, (0, 0))
  assert silent() == []
  now_seconds += 99
  assert silent() == []
  # A sign of life.
  os.utime(running, (10**10, 10**10))
  now_seconds += 99
  assert silent() == []
  now_seconds += 99
  assert silent() == []
  now_seconds += 2
  assert silent() == ["host.1.2"]
  # The same trial of another worker, who has not touched it yet.
  assert folder.claim(folder.entries()[trial.name], "other.1.2") is not None
  assert silent() == []
  now_seconds += 101
  assert silent() == ["other.1.2"]


def test_a_worker_that_was_taken_for_dead_changes_nothing(folder, trial, monkeypatch):
  monkeypatch.setattr(sweep_folder, "BEAT_SECONDS", 0.05)
  with folder.claim(folder.entries()[trial.name], "slow.1.2") as slow:
    other = folder.claim(folder.entries()[trial.name], "quick.1.2")
    assert other is not None
    until_seconds = time.monotonic() + 5
    while not slow.is_lost(60):
      assert time.monotonic() < until_seconds
      time.sleep(0.01)
    slow.write({"starts": 5})
    slow.move(FAILED, {"reason": "not mine"})
    slow.move(WAITING, {})
    assert slow.read() == {}
  entry = folder.entries()[trial.name]
  assert (entry.state, entry.worker, entry.read()) == (RUNNING, "quick.1.2", {})
  assert len(list(folder.path.glob("*/P0*"))) == 2


def test_a_share_that_does_not_answer_loses_the_claim(folder, trial, monkeypatch):
  monkeypatch.setattr(sweep_folder, "BEAT_SECONDS", 0.05)

  def hang(*unused_arguments):
    raise OSError("stale file handle")

  monkeypatch.setattr(os, "utime", hang)
  with folder.claim(folder.entries()[trial.name], "host.1.2") as claim:
    time.sleep(0.2)
    assert claim.is_lost(0.2)
    assert not claim.is_lost(60)


def test_what_failed_is_run_again_unless_it_diverged(folder):
  for rate, failure in ((0.1, {"reason": "disk"}), (0.2, {"diverged": True}), (0.4, None)):
    trial = make_trial(rate)
    folder.add(trial)
    claim = folder.claim(folder.entries()[trial.name], "host.1.2")
    claim.move(DONE if failure is None else FAILED, failure or {})
  assert folder.retry_failed() == [make_trial(0.1).name]
  assert [state(folder, make_trial(rate)) for rate in (0.1, 0.2, 0.4)] == [WAITING, FAILED, DONE]


def test_one_folder_is_of_one_configuration(folder):
  folder.create(FIXED)
  with pytest.raises(UserError, match=r"config was 'a\.py' and is now 'b\.py'; give another"):
    folder.create({**FIXED, "config": "b.py"})
  # The first one stays, and nothing is left behind.
  folder.create(FIXED)
  assert not list(folder.path.rglob(".*"))


def test_many_create_a_folder_at_once(tmp_path):
  together(8, lambda _: SweepFolder(tmp_path / "sweep").create(FIXED))
  assert json.loads((tmp_path / "sweep" / "plan.json").read_text()) == FIXED


def test_what_cannot_be_a_folder_is_one_line(tmp_path, folder):
  with pytest.raises(UserError, match="mount a share and give its path"):
    SweepFolder("gs://bucket/sweep")
  with pytest.raises(UserError, match="there is no sweep"):
    SweepFolder(tmp_path).check()
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(UserError, match="file/sweep' cannot be written: Not a directory"):
    SweepFolder(file / "sweep").create(FIXED)
  (folder.path / "plan.json").write_text("{")
  with pytest.raises(UserError, match=r"plan\.json' is damaged"):
    folder.create(FIXED)
  trial = make_trial()
  folder.add(trial)
  (folder.trial_folder(trial.name) / "trial.json").write_text('{"name": "a"}')
  with pytest.raises(UserError, match=r"trial file .* cannot be read"):
    folder.trial(trial.name)


def test_names_of_workers_differ_and_fit_into_a_file_name():
  name = worker_name()
  assert str(os.getpid()) in name
  assert not {"@", "/"} & set(name)


def test_trials_are_ordered_small_and_short_first():
  small = make_trial()
  large = dataclasses.replace(small, compute_flops=10**10)
  higher = dataclasses.replace(small, learning_rate=0.2)
  assert sorted([large, small, higher], key=lambda one: one.order) == [higher, small, large]
