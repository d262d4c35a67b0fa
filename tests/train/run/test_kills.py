"""SIGKILL to real runs, at random times: a run that is resumed ends as if nothing had happened."""

import collections
import json
import signal
import time

import numpy as np
import pytest

from tests.train import runs
from train.audit_data import audit
from train.run.records.goodput import START_UP, read_goodput

# Little between what can be interrupted: a checkpoint or an evaluation every few steps.
FIELDS = {
  "schedule.train_steps": 24,
  "schedule.checkpoint_every_steps": 3,
  "schedule.evaluate_every_steps": 6,
}


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
  """Its final hash, the seconds that it takes when everything is compiled, and the cache."""
  folder = tmp_path_factory.mktemp("uninterrupted")
  for name in ("first", "second"):
    started_seconds = time.monotonic()
    process = runs.start(folder / name, digits, folder / "cache", folder / "log", **FIELDS)
    assert process.wait(timeout=500) == 0
    seconds = time.monotonic() - started_seconds
  final = runs.final_sha256(folder / "second")
  assert final == runs.final_sha256(folder / "first")
  return final, seconds, folder / "cache"


def is_saving(workdir):
  return any("tmp" in path.name for path in workdir.glob("checkpoints/*"))


def is_evaluating(workdir):
  """An evaluation begins behind its step's line; the second one, of the average, ends it."""
  try:
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  except (OSError, IndexError, ValueError):
    return False
  if last["kind"] == "train":
    return last["step"] % FIELDS["schedule.evaluate_every_steps"] == 0
  return last["kind"] == "evaluation" and not last["ema"]


# Where to kill: behind a random time, anywhere or as soon as the run is there.
AIMS = (None, is_evaluating, is_saving, None, None)


def kill_often(folder, number, digits, uninterrupted):
  """One run, killed once for each of `AIMS`; says in which phases."""
  final, seconds, cache = uninterrupted
  random = np.random.default_rng(number)
  workdir, log = folder / "run", folder / "log"
  phases = []
  for is_there in AIMS:
    process = runs.start(workdir, digits, cache, log, **FIELDS)
    deadline_seconds = time.monotonic() + random.uniform(0, seconds)
    last_seconds = deadline_seconds + (seconds if is_there else 0)
    while process.poll() is None and (now_seconds := time.monotonic()) < last_seconds:
      if is_there and now_seconds > deadline_seconds and is_there(workdir):
        break
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Looked at when the process is dead, so that it is where it died.
    if is_saving(workdir):
      phases.append("save")
    else:
      phases.append(
        "evaluation"
        if is_evaluating(workdir)
        else "/".join(runs.last_phases(workdir) or (START_UP,))
      )
  assert runs.start(workdir, digits, cache, log, **FIELDS).wait(timeout=500) == 0
  assert runs.final_sha256(workdir) == final
  found = audit(str(workdir))
  assert (found.steps, found.images) == (24, 24 * 16)
  assert read_goodput(str(workdir)).starts >= 2
  assert not is_saving(workdir)
  return phases


def test_5_kills(digits, uninterrupted, tmp_path):
  print(kill_often(tmp_path, 0, digits, uninterrupted))


@pytest.mark.slow
def test_50_kills(digits, uninterrupted, tmp_path):
  phases = collections.Counter()
  for number in range(100, 110):
    folder = tmp_path / str(number)
    folder.mkdir()
    phases.update(kill_often(folder, number, digits, uninterrupted))
  print(phases)
