"""Claims under races, with answers that were lost, and by workers that are taken for dead."""

import collections
import itertools
import os
import subprocess
import sys
import time

import pytest

from tests.processes import wait_for
from tests.repository import ROOT
from tests.train.sweep.trials import make_trial, together
from train.sweep.claim import claim_trial, worker_name
from train.sweep.folder import FAILED, RUNNING, WAITING

RACE = """
import sys, time
from train.sweep.claim import claim_trial
from train.sweep.folder import SweepFolder
folder = SweepFolder(sys.argv[1])
entries = folder.entries()
print("ready", flush=True)
sys.stdin.readline()
won = [name for name in sorted(entries) if claim_trial(folder, entries[name], sys.argv[2])]
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
      claim_trial(folder, folder.entries()[trial.name], "dead.1.2")
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
    8, lambda i: [claim_trial(folder, entries[name], f"racer.{i}.0") for name in sorted(entries)]
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
  assert claim_trial(folder, entry, "host.1.2") is not None


def test_a_worker_shows_life_while_it_has_a_claim(folder, trial):
  seen, entry = set(), folder.entries()[trial.name]
  with claim_trial(folder, entry, "host.1.2", heartbeat_seconds=0.01) as claim:
    until_seconds = time.monotonic() + 10
    while len(seen) < 4:
      assert time.monotonic() < until_seconds
      assert not claim.is_lost(60)
      seen.add(folder.entries()[trial.name].path.stat().st_mtime_ns)


def test_a_worker_that_was_taken_for_dead_changes_nothing(folder, trial):
  entry = folder.entries()[trial.name]
  with claim_trial(folder, entry, "slow.1.2", heartbeat_seconds=0.05) as slow:
    other = claim_trial(folder, folder.entries()[trial.name], "quick.1.2")
    assert other is not None
    wait_for(lambda: slow.is_lost(60))
    slow.write({"starts": 5})
    slow.move(FAILED, {"reason": "not mine"})
    slow.move(WAITING, {})
    assert slow.read() == {}
  entry = folder.entries()[trial.name]
  assert (entry.state, entry.worker, entry.read()) == (RUNNING, "quick.1.2", {})
  assert len(list(folder.path.glob("*/P0*"))) == 2


def test_a_share_that_does_not_answer_loses_the_claim(folder, trial, monkeypatch):
  def hang(*unused_arguments):
    raise OSError("stale file handle")

  monkeypatch.setattr(os, "utime", hang)
  entry = folder.entries()[trial.name]
  with claim_trial(folder, entry, "host.1.2", heartbeat_seconds=0.05) as claim:
    time.sleep(0.2)
    assert claim.is_lost(0.2)
    assert not claim.is_lost(60)


def test_half_of_the_silence_that_others_allow_loses_the_claim(folder, trial, monkeypatch):
  claim = claim_trial(folder, folder.entries()[trial.name], "host.1.2")
  began_seconds = time.monotonic()

  def is_lost_after(seconds):
    with monkeypatch.context() as context:
      context.setattr(time, "monotonic", lambda: began_seconds + seconds)
      return claim.is_lost(60)

  assert [is_lost_after(seconds) for seconds in (29, 31)] == [False, True]


def test_names_of_workers_differ_and_fit_into_a_file_name():
  name = worker_name()
  assert str(os.getpid()) in name
  assert not {"@", "/"} & set(name)
