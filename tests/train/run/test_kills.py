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


def is_saving(workdir):
  return any("tmp" in path.name for path in workdir.glob("checkpoints/*"))


def is_evaluating(workdir):
  """An evaluation begins after its step's record; the second record, of the average, ends it."""
  try:
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  except (OSError, IndexError, ValueError):
    return False
  if last["kind"] == "train":
    return last["step"] % runs.FIELDS["schedule.evaluate_every_steps"] == 0
  return last["kind"] == "evaluation" and not last["ema"]


# Where to kill: after a random time, anywhere or as soon as the run is there.
AIMS = (None, is_evaluating, is_saving, None, None)


def kill_often(folder, number, digits, uninterrupted):
  """Kills one run once for each of `AIMS`, and returns in which phases."""
  seconds = uninterrupted.seconds
  random = np.random.default_rng(number)
  workdir, log = folder / "run", folder / "log"
  phases = []
  for is_there in AIMS:
    process = runs.start(workdir, digits, log)
    deadline_seconds = time.monotonic() + random.uniform(0, seconds)
    last_seconds = deadline_seconds + (seconds if is_there else 0)
    while process.poll() is None and (now_seconds := time.monotonic()) < last_seconds:
      if is_there and now_seconds > deadline_seconds and is_there(workdir):
        break
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Only now that the process is dead is this where it died.
    if is_saving(workdir):
      phases.append("save")
    else:
      phases.append(
        "evaluation"
        if is_evaluating(workdir)
        else "/".join(runs.last_phases(workdir) or (START_UP,))
      )
  assert runs.start(workdir, digits, log).wait(timeout=500) == 0
  assert runs.final_sha256(workdir) == uninterrupted.final_sha256
  found = audit(str(workdir))
  assert (found.steps, found.images) == (runs.STEPS, runs.STEPS * 16)
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
