import os

from train.sweep.claim import claim_trial
from train.sweep.dead_workers import DeadWorkerWatch


def test_a_dead_worker_is_noticed_by_the_clock_of_the_one_that_watches(folder, trial):
  now_seconds = 1000.0
  watch = DeadWorkerWatch(100, clock=lambda: now_seconds)

  def abandoned_by():
    return [entry.worker for entry in watch.abandoned(folder.entries())]

  claim_trial(folder, folder.entries()[trial.name], "host.1.2")
  (running,) = (folder.path / "running").iterdir()
  # The clock of the server, or of the worker, is days off.
  os.utime(running, (0, 0))
  assert abandoned_by() == []
  now_seconds += 99
  assert abandoned_by() == []
  # A sign of life.
  os.utime(running, (10**10, 10**10))
  now_seconds += 99
  assert abandoned_by() == []
  now_seconds += 99
  assert abandoned_by() == []
  now_seconds += 2
  assert abandoned_by() == ["host.1.2"]
  # The same trial of another worker, who has not touched it yet.
  assert claim_trial(folder, folder.entries()[trial.name], "other.1.2") is not None
  assert abandoned_by() == []
  now_seconds += 101
  assert abandoned_by() == ["other.1.2"]
