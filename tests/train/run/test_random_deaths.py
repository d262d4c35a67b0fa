"""Signals to a run's process, process group and data workers at random moments of every phase.

    RANDOM_DEATHS=100 python -m pytest -n0 -s -m slow tests/train/run/test_random_deaths.py

prints what each has cost. Only SIGKILL to the process that trains loses steps, and nothing is left
behind: no process and no temporary file.
"""

import collections
import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest

from nfnet.errors import UserError
from tests.processes import children, is_running
from tests.train import runs
from train.audit_data import audit
from train.run.records.goodput import DATA_WAIT

TRIES = int(os.environ.get("RANDOM_DEATHS", "24"))
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
PHASES = ("start-up", "compile", "step", "save", "evaluation", "data wait")
TARGETS = ("process", "group", "worker 0", "worker 1")
FIELDS = {"data.workers": 2}
# Once its terminal is closed, a run goes on; before it listens, any signal ends it.
CODES = {
  signal.SIGTERM: (143,),
  signal.SIGINT: (130,),
  signal.SIGHUP: (0,),
  signal.SIGKILL: (137,),
}
CODES_AT_START = {**CODES, signal.SIGHUP: (0, 129)}


def workers(pid):
  """Returns the data workers of a run, in the order in which they were started."""
  found = []
  for child in sorted(children(pid)):
    try:
      if b"batch_workers" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
        found.append(child)
    except OSError:
      continue
  return found


def wait_until(process, is_true, seconds=120):
  deadline_seconds = time.monotonic() + seconds
  while not is_true() and process.poll() is None and time.monotonic() < deadline_seconds:
    time.sleep(0.002)


def newest_record(workdir):
  try:
    found = re.findall(r'"step": (\d+)', (workdir / "metrics.jsonl").read_text())
  except OSError:
    return 0
  return int(found[-1]) if found else 0


def arrive(phase, process, workdir, log, random):
  """Waits until the run is somewhere in a phase; returns processes that were stopped for that."""
  if phase == "start-up":
    time.sleep(random.uniform(0, 4))
    return []
  wait_until(process, lambda: "compiling" in log.read_text())
  if phase == "compile":
    time.sleep(random.uniform(0, 1))
    return []
  first = newest_record(workdir)
  wait_until(process, lambda: newest_record(workdir) > first)
  if phase == "data wait":
    stopped = workers(process.pid)
    for pid in stopped:
      runs.send(pid, signal.SIGSTOP)
    wait_until(process, lambda: runs.last_phases(workdir) == (DATA_WAIT,))
    return stopped
  if phase == "save":
    wait_until(process, lambda: runs.is_saving(workdir))
  elif phase == "evaluation":
    wait_until(process, lambda: runs.is_evaluating(workdir))
  time.sleep(random.uniform(0, 0.05))
  return []


def attack(process, target, number):
  """Sends a signal; returns whether the process that trains got it."""
  if target.startswith("worker"):
    index = int(target.split()[1])
    if index < len(found := workers(process.pid)):
      runs.send(found[index], number)
      return False
  if target == "group":
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
  return True


def starts_and_repeated_steps(workdir):
  """Returns how many starts have trained, and how many steps were done again."""
  try:
    found = audit(str(workdir))
  except UserError:
    return 0, 0
  return found.starts, found.repeated_steps


@pytest.mark.slow
def test_no_step_is_lost_and_nothing_is_left(digits, uninterrupted, tmp_path, monkeypatch):
  temporary = tmp_path / "tmp"
  temporary.mkdir()
  monkeypatch.setenv("TMPDIR", str(temporary))
  random = np.random.default_rng(int(os.environ.get("RANDOM_DEATHS_SEED", "0")))
  outcomes = collections.Counter()
  lost = collections.Counter()
  runs_finished = restarts = 0
  workdir = tmp_path / "run 0"
  # All combinations in random order, each phase as often as any other.
  combinations = [(p, t, s) for p in PHASES for t in TARGETS for s in SIGNALS]
  random.shuffle(combinations)
  attempt = 0
  cause = None
  while attempt < TRIES or cause is not None:
    log = tmp_path / f"log {attempt}"
    log.write_text("")
    starts_before, repeated_before = starts_and_repeated_steps(workdir)
    process = runs.start(workdir, digits, log, session=True, **FIELDS)
    stopped, is_hit, what = [], False, None
    if attempt < TRIES:
      phase, target, number = combinations[attempt % len(combinations)]
      stopped = arrive(phase, process, workdir, log, random)
      descendants = children(process.pid)
      if process.poll() is None:
        is_hit = attack(process, target, number)
        what = (phase, "process" if is_hit and target != "group" else target, number.name)
      attempt += 1
    if not is_hit or number == signal.SIGHUP:
      for pid in stopped:
        runs.send(pid, signal.SIGCONT)
    code = process.wait(timeout=300)
    code = code if code >= 0 else 128 - code
    for pid in stopped:
      runs.send(pid, signal.SIGCONT)
    text = log.read_text()
    assert "Traceback" not in text, text
    starts, repeated = starts_and_repeated_steps(workdir)
    if cause is not None:
      lost[cause] += repeated - repeated_before
      if cause[1] != "KILL":
        assert repeated == repeated_before, (cause, repeated - repeated_before)
    # What was lost is done again by the next start that trains.
    if starts > starts_before or code == 0:
      cause = None
    if what is not None:
      expected = (CODES_AT_START if what[0] == "start-up" else CODES)[number] if is_hit else (0,)
      print(attempt, *what, "ended with", code, flush=True)
      # The run may have come to its end on its own meanwhile.
      assert code in (*expected, 0), (what, code, text)
      outcomes[(what[2], what[1], code)] += 1
      restarts += "another one makes the same batches" in text
      deadline_seconds = time.monotonic() + 10
      while any(map(is_running, descendants)) and time.monotonic() < deadline_seconds:
        time.sleep(0.05)
      assert not any(map(is_running, descendants)), what
      assert not list(temporary.iterdir()), (what, list(temporary.iterdir()))
      if code != 0 and is_hit and cause is None:
        cause = (what[1], "KILL" if number == signal.SIGKILL else number.name)
    if code == 0:
      assert runs.final_sha256(workdir) == uninterrupted.final_sha256
      found = audit(str(workdir))
      assert (found.steps, found.images) == (runs.STEPS, runs.STEPS * 16)
      runs_finished += 1
      workdir = tmp_path / f"run {attempt}"
  print(f"{attempt} signals; {runs_finished} runs ended with the state of an uninterrupted one")
  print(f"runs in which killed workers were replaced: {restarts}")
  print("ended with:", {" ".join(map(str, key)): n for key, n in sorted(outcomes.items())})
  print("steps done again:", {" ".join(key): n for key, n in sorted(lost.items())})
