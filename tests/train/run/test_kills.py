"""SIGKILL to real runs, at random times: a run that is resumed ends as if nothing had happened."""

import collections
import signal
import time

import numpy as np
import pytest

from tests.train import runs
from train.audit_data import audit
from train.run.records.goodput import START_UP, read_goodput

# Where to kill: after a random time, anywhere or as soon as the run is there.
AIMS = (None, runs.is_evaluating, runs.is_saving, None, None)


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
    if runs.is_saving(workdir):
      phases.append("save")
    else:
      phases.append(
        "evaluation"
        if runs.is_evaluating(workdir)
        else "/".join(runs.last_phases(workdir) or (START_UP,))
      )
  assert runs.start(workdir, digits, log).wait(timeout=500) == 0
  assert runs.final_sha256(workdir) == uninterrupted.final_sha256
  found = audit(str(workdir))
  assert (found.steps, found.images) == (runs.STEPS, runs.STEPS * 16)
  assert read_goodput(str(workdir)).starts >= 2
  assert not runs.is_saving(workdir)
  return phases


@pytest.mark.slow
def test_50_kills(digits, uninterrupted, tmp_path):
  phases = collections.Counter()
  for number in range(100, 110):
    folder = tmp_path / str(number)
    folder.mkdir()
    phases.update(kill_often(folder, number, digits, uninterrupted))
  print(phases)
