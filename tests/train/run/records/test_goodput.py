import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from nfnet.errors import UserError
from tests.repository import ROOT
from train.run.records import goodput
from train.run.records.goodput import (
  CHECKPOINT,
  COMPILE,
  DATA_WAIT,
  EVALUATION,
  LOST_WORK,
  PHASES,
  RESTART,
  START_UP,
  STEP,
  Ledger,
  as_text,
  read_goodput,
)


def write_ledger(path, *records):
  (path / "goodput.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def started(unix_seconds, cores=2):
  return {"started_unix_seconds": unix_seconds, "cores": cores, "device_kind": "some"}


def test_a_run_that_was_killed_and_resumed(tmp_path):
  write_ledger(
    tmp_path,
    started(1000.0),
    {"step": 0, "seconds": {START_UP: 10.0}},
    {"goes_on_from_step": 0},
    {"step": 1, "seconds": {COMPILE: 20.0, STEP: 1.0}},
    {"step": 50, "seconds": {DATA_WAIT: 3.0, STEP: 47.0}},
    {"step": 50, "seconds": {CHECKPOINT: 2.0}},
    {"step": 60, "seconds": {STEP: 9.0, DATA_WAIT: 1.0, EVALUATION: 5.0}},
    # 98 seconds after the start, killed. Started anew at 150 with twice the cores.
    started(1150.0, cores=4),
    {"step": 0, "seconds": {START_UP: 8.0}},
    {"goes_on_from_step": 50},
    {"step": 50, "seconds": {COMPILE: 22.0}},
    {"step": 100, "seconds": {STEP: 50.0}},
  )
  found = read_goodput(str(tmp_path))
  assert found.seconds == {
    START_UP: 18.0,
    COMPILE: 42.0,
    DATA_WAIT: 3.0,
    STEP: 98.0,
    CHECKPOINT: 2.0,
    EVALUATION: 0.0,
    LOST_WORK: 15.0,
    RESTART: 52.0,
  }
  assert found.wall_seconds == 230.0
  assert found.starts == 2
  assert found.productive_core_hours == pytest.approx((48 * 2 + 50 * 4) / 3600)
  assert found.total_core_hours == pytest.approx((98 * 2 + 80 * 4) / 3600)
  text = as_text(found)
  assert "lost work   15.0     6.5%" in text
  assert "starts: 2" in text


def test_what_is_lost_twice_is_lost_once(tmp_path):
  write_ledger(
    tmp_path,
    started(0.0),
    {"goes_on_from_step": 0},
    {"step": 9, "seconds": {STEP: 9.0}},
    {"goes_on_from_step": 5},
    {"step": 8, "seconds": {STEP: 3.0}},
    {"goes_on_from_step": 5},
    {"step": 9, "seconds": {STEP: 4.0}},
  )
  found = read_goodput(str(tmp_path))
  assert (found.seconds[LOST_WORK], found.seconds[STEP]) == (12.0, 4.0)


def test_going_back_is_to_the_step_before(tmp_path):
  """What comes between it and the next step is lost with that one, not with the one left."""
  with Ledger(str(tmp_path)) as ledger:
    ledger.goes_on_from(0)
    ledger.begin_steps()
    ledger.step_done(8)
    ledger.goes_on_from(4)
    time.sleep(0.1)
    ledger.write()
    ledger.goes_on_from(6)
  assert read_goodput(str(tmp_path)).seconds[LOST_WORK] < 0.1


def test_phases_nest(tmp_path):
  with Ledger(str(tmp_path), began_seconds=time.monotonic() - 5) as ledger:
    ledger.goes_on_from(0)
    ledger.begin_steps()
    with ledger.phase(CHECKPOINT):
      time.sleep(0.05)
      with ledger.phase(EVALUATION):
        time.sleep(0.1)
    time.sleep(0.2)
    ledger.step_done(1)
  seconds = read_goodput(str(tmp_path)).seconds
  for phase, least in ((START_UP, 5.0), (CHECKPOINT, 0.05), (EVALUATION, 0.1), (STEP, 0.2)):
    assert least <= seconds[phase] < least + 0.15


def test_the_sum_is_the_time_that_a_clock_shows_though_the_process_is_killed(tmp_path):
  program = """
    import sys, time
    from train.run.records.goodput import EVALUATION, Ledger, process_began_seconds

    with Ledger(sys.argv[1], began_seconds=process_began_seconds()) as ledger:
      ledger.goes_on_from(0)
      ledger.begin_steps()
      with ledger.phase(EVALUATION):
        time.sleep(1)
      print("ready", flush=True)
      time.sleep(float(sys.argv[2]))
      ledger.step_done(1)
    print(time.time(), flush=True)
  """
  command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
  options = {
    "stdout": subprocess.PIPE,
    "cwd": ROOT,
    "env": {**os.environ, "JAX_PLATFORMS": "cpu"},
    "text": True,
  }
  began_seconds = time.time()
  with subprocess.Popen([*command, "60"], **options) as process:
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
  # What the last line of the killed one lacks counts for the restart.
  time.sleep(1)
  with subprocess.Popen([*command, "0.2"], **options) as process:
    assert process.stdout.readline() == "ready\n"
    wall_seconds = float(process.stdout.readline()) - began_seconds
  found = read_goodput(str(tmp_path))
  assert found.wall_seconds == pytest.approx(wall_seconds, abs=0.1)
  assert found.seconds[EVALUATION] == pytest.approx(2, abs=0.3)
  assert 1 < found.seconds[RESTART] < 2.6
  assert found.starts == 2
  assert set(found.seconds) == set(PHASES)


def test_a_line_that_a_kill_cut_is_dropped(tmp_path):
  write_ledger(tmp_path, started(0.0), {"step": 1, "seconds": {STEP: 2.0}})
  with (tmp_path / "goodput.jsonl").open("a") as file:
    file.write('{"step": 2, "seco')
  assert read_goodput(str(tmp_path)).seconds[STEP] == 2.0
  with Ledger(str(tmp_path)) as ledger:
    ledger.goes_on_from(1)
  assert read_goodput(str(tmp_path)).starts == 2


def test_integers_of_any_size_add_up(tmp_path):
  """JSON does not bound them, and as integers their products are beyond all floats."""
  steps = [{"step": step, "seconds": {STEP: 10**299}} for step in range(2)]
  write_ledger(tmp_path, started(0, cores=2**62), *steps)
  found = read_goodput(str(tmp_path))
  assert found.wall_seconds == 2e299
  assert found.total_core_hours == float("inf")


def test_a_start_that_is_refused_does_not_count(tmp_path):
  write_ledger(tmp_path, started(0.0), {"step": 1, "seconds": {STEP: 2.0}})
  before = (tmp_path / "goodput.jsonl").read_bytes()
  with Ledger(str(tmp_path)) as ledger:
    ledger.write()
  assert (tmp_path / "goodput.jsonl").read_bytes() == before


def test_a_ledger_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match=r"goodput\.jsonl' cannot be read"):
    read_goodput(str(tmp_path))


def test_a_folder_that_does_not_answer_does_not_hold_up_the_training(tmp_path, monkeypatch):
  monkeypatch.setattr(goodput, "_SECONDS_BETWEEN_LINES", 0.01)
  is_writing, may_go_on = threading.Event(), threading.Event()
  with Ledger(str(tmp_path)) as ledger:
    ledger.goes_on_from(0)
    flush = ledger._file.flush

    def wait_and_flush():
      is_writing.set()
      may_go_on.wait(10)
      flush()

    monkeypatch.setattr(ledger._file, "flush", wait_and_flush)
    assert is_writing.wait(10)
    began_seconds = time.monotonic()
    with ledger.phase(STEP):
      pass
    took_seconds = time.monotonic() - began_seconds
    may_go_on.set()
  assert took_seconds < 5
