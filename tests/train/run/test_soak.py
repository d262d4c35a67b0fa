"""10,000 steps with saves, evaluations and restarts: nothing grows."""

import os
import pathlib
import signal
import time

import numpy as np
import pytest

from tests.train import runs
from train.audit_data import audit
from train.run.exit_codes import EXIT_TERMINATED
from train.run.records.goodput import PHASES, read_goodput

STEPS = 10_000
# Steps that take longer than their data, so that as many batches wait in memory as there is room
# for: their number says something only then.
FIELDS = {
  "model.variant": "P0",
  "model.block_execution": "scan",
  "data.train_pixels": 32,
  "data.evaluation_pixels": 32,
  "data.workers": 1,
  "schedule.train_steps": STEPS,
  "schedule.log_every_steps": 50,
  "schedule.evaluate_every_steps": 500,
  "schedule.checkpoint_every_steps": 100,
}
RESTART_AT_STEPS = (3_000, 6_000)


def sample(pid):
  """Returns resident bytes, open files and batches in memory; None if the process is gone."""
  try:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
    batches = pathlib.Path(f"/proc/{pid}/maps").read_text().count("/memfd:nfnets-batch")
    return resident, len(os.listdir(f"/proc/{pid}/fd")), batches
  except (OSError, IndexError):
    return None


def newest_step(workdir):
  names = [path.name for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
  return max(map(int, names), default=0)


@pytest.mark.slow
def test_10000_steps_need_no_more_at_their_end(digits, tmp_path, monkeypatch):
  # glibc keeps what the threads of a save have freed, most of it if each thread has an arena of its
  # own, and memory that is free is not a leak.
  monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
  workdir = tmp_path / "run"
  began_seconds = time.time()
  for stop_at in (*RESTART_AT_STEPS, None):
    process = runs.start(workdir, digits, tmp_path / "log", **FIELDS)
    first, samples = newest_step(workdir), []
    while process.poll() is None:
      step = newest_step(workdir)
      # What is compiled and opened in the first steps, evaluation and checkpoint stays.
      if step >= first + 600 and (one := sample(process.pid)):
        samples.append(one)
      if stop_at is not None and step >= stop_at:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == EXIT_TERMINATED
      time.sleep(1)
    assert process.returncode == (0 if stop_at is None else EXIT_TERMINATED)
    early, late = np.array_split(np.array(samples), 3)[::2]
    print(
      f"to step {newest_step(workdir)}: {np.median(early, axis=0)} then {np.median(late, axis=0)}"
    )
    # Between a save or an evaluation and the next, the allocator keeps what it likes.
    assert np.median(late[:, 0]) < 1.05 * np.median(early[:, 0])
    assert np.median(late[:, 1]) <= np.median(early[:, 1]) + 2
    assert 0 < np.median(late[:, 2]) <= np.median(early[:, 2]) + 2
  wall_seconds = time.time() - began_seconds
  found = audit(str(workdir))
  assert (found.steps, found.starts, found.repeated_steps) == (STEPS, 3, 0)
  assert found.complete_epochs * found.repetitions == 16 * STEPS // 1000
  goodput = read_goodput(str(workdir))
  # The last process draws plots after its last line.
  assert goodput.wall_seconds == pytest.approx(wall_seconds, rel=0.005, abs=5)
  print({phase: round(goodput.seconds[phase], 1) for phase in PHASES}, round(wall_seconds, 1))
