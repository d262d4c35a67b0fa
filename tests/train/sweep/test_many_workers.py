"""Fifty workers on one folder: every trial is run exactly once."""

import os
import subprocess
import sys

import pytest

from tests.repository import ROOT
from tests.train.sweep import many_workers
from train.sweep.folder import DONE, SweepFolder
from train.sweep.results import results

WORKERS = 50
TRIALS = 100


@pytest.mark.slow
def test_of_fifty_workers_one_runs_each_trial(tmp_path):
  rates = ", ".join(str(number / 100) for number in range(1, 1 + TRIALS))
  plan = tmp_path / "plan.toml"
  plan.write_text(
    f'config = "{ROOT}/train/configs/demo_pretrain.py"\nvariants = ["P0"]\nepochs = [5]\n'
    f"learning_rates = [{rates}]\n"
  )
  path = tmp_path / "sweep"
  subprocess.run(
    [sys.executable, many_workers.__file__, plan, path, str(WORKERS)],
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    check=True,
    timeout=900,
  )
  outputs = [(tmp_path / f"sweep-worker-{index}.txt").read_text() for index in range(WORKERS)]
  assert not [text for text in outputs if "Traceback" in text or "rror" in text]
  folder = SweepFolder(path)
  entries = folder.entries()
  assert len(entries) == TRIALS
  assert {entry.state for entry in entries.values()} == {DONE}
  assert not folder.ignored
  ran = [(folder.trial_folder(name) / "ran").read_text() for name in entries]
  assert ran == ["ran\n"] * TRIALS
  rows = results(folder, entries)
  assert len(rows) == TRIALS
  assert (path / "results.csv").read_text().count("\n") == 1 + TRIALS
  # Nothing is left of unfinished writes.
  assert not list(path.rglob(".*"))
