"""Leases between real processes and, with files as they would write them, between machines."""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nfnet.errors import InUseError, UserError
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.repository import ROOT
from train.demo import demo
from train.run.checkpoints.manager import Checkpoints
from train.run.leases import heartbeat, held, workdir_lease
from train.run.leases.workdir_lease import lease_on
from train.run.records.goodput import Ledger
from train.run.records.id_log import IdLog
from train.run.records.metrics import MetricsWriter
from train.run.records.workdir import writing_to

HOLDER = """
import sys, time
from train.run.leases.workdir_lease import lease_on
with lease_on(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""
ELSEWHERE = {
  "process": 7,
  "host": "other",
  "since": "noon",
  "place": "another kernel:1",
  "token": 5,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Waits that are not what a test is about are short."""
  monkeypatch.setattr(workdir_lease, "_GRACE_SECONDS", 0.0)
  monkeypatch.setattr(workdir_lease, "HEARTBEAT_SECONDS", 0.1)


def write_lease(workdir, content, *, seconds_ago=0.0):
  workdir.mkdir(exist_ok=True)
  path = workdir / held.LEASE_FILE
  path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
  then = time.time() - seconds_ago
  os.utime(path, (then, then))
  return path


def assert_one_line(error, *parts):
  text = str(error.value)
  assert "\n" not in text
  for part in parts:
    assert part in text


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
  workdir = tmp_path / "new" / "run"
  command = [sys.executable, "-c", HOLDER, str(workdir)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InUseError) as error, lease_on(workdir):
      pass
    assert_one_line(error, repr(str(workdir)), f"in use by process {process.pid} on host")
    process.send_signal(signal.SIGKILL)
  assert (workdir / held.LEASE_FILE).exists()
  began_seconds = time.monotonic()
  with lease_on(workdir):
    assert time.monotonic() - began_seconds < 1
    assert json.loads((workdir / held.LEASE_FILE).read_bytes())["process"] == os.getpid()
  assert list(workdir.iterdir()) == []


def test_the_group_may_read_a_lease_if_it_may_read_other_new_files(tmp_path):
  with group_umask(), lease_on(tmp_path / "run"):
    assert (tmp_path / "run" / held.LEASE_FILE).is_file()
    assert modes_beside_group_umask(tmp_path / "run") == {}


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lease, "_GRACE_SECONDS", 10.0)
  with lease_on(tmp_path):
    descriptor = os.open(tmp_path / held.LEASE_FILE, os.O_RDWR)
  path = write_lease(tmp_path, {**ELSEWHERE, "place": workdir_lease._place(descriptor)})
  os.close(descriptor)
  descriptor = os.open(path, os.O_RDWR)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  threading.Timer(0.5, os.close, [descriptor]).start()
  with lease_on(tmp_path):
    pass


def test_the_demo_takes_a_lease_for_all_of_its_parts(tmp_path):
  with lease_on(tmp_path), pytest.raises(InUseError, match="in use by process"):
    demo(tmp_path)


@pytest.mark.parametrize(
  ("content", "seconds_ago"),
  [(ELSEWHERE, 61), (b"{", 61), (b"[" * 1000, 61), (b"\xff\0", 61), ({"token": 3}, 61), (b"", 0)],
)
def test_the_lease_of_a_machine_that_is_long_silent_is_taken_over_at_once(
  content, seconds_ago, tmp_path
):
  write_lease(tmp_path, content, seconds_ago=seconds_ago)
  began_seconds = time.monotonic()
  with lease_on(tmp_path):
    with writing_to(tmp_path):
      pass
    assert time.monotonic() - began_seconds < 1


def test_a_lock_that_a_server_keeps_for_a_dead_machine_does_not_matter(tmp_path):
  path = write_lease(tmp_path, ELSEWHERE, seconds_ago=61)
  with path.open("r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with lease_on(tmp_path), writing_to(tmp_path):
      pass


def test_a_machine_that_has_just_fallen_silent_is_waited_for(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(workdir_lease, "SILENT_SECONDS_MAX", 1.0)
  write_lease(tmp_path, {**ELSEWHERE, "host": "\x1b[31m\nother"})
  began_seconds = time.monotonic()
  with lease_on(tmp_path):
    assert 0.5 < time.monotonic() - began_seconds < 5
  (line,) = capsys.readouterr().err.splitlines()
  assert r"process 7 on host \x1b[31m\nother (since noon); waiting up to 1 s" in line


@pytest.mark.parametrize("locks", [True, False])
def test_a_machine_that_shows_life_is_left_alone(locks, tmp_path, monkeypatch):
  if not locks:
    # As on a file system that knows no locks, where even this machine's processes are far away.
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
  path = write_lease(tmp_path, ELSEWHERE)
  before = path.read_bytes()
  with (
    heartbeat.Heartbeat(path, interval_seconds=0.05),
    pytest.raises(InUseError) as error,
    lease_on(tmp_path),
  ):
    pass
  assert_one_line(error, "in use by process 7 on host other (since noon)")
  assert path.read_bytes() == before


def test_without_locks_a_folder_can_be_leased_too(tmp_path, monkeypatch):
  monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
  for _ in range(2):
    with lease_on(tmp_path), writing_to(tmp_path):
      pass
  write_lease(tmp_path, ELSEWHERE, seconds_ago=61)
  with lease_on(tmp_path):
    pass


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself", "file as workdir"])
def test_what_cannot_be_a_lease_is_named_in_one_line(kind, tmp_path):
  workdir, path = tmp_path, tmp_path / held.LEASE_FILE
  match kind:
    case "folder":
      path.mkdir()
    case "pipe":
      os.mkfifo(path)
    case "link to itself":
      path.symlink_to(path)
    case _:
      path.write_text("")
      workdir = path
  with pytest.raises(UserError) as error, lease_on(workdir):
    pass
  assert_one_line(error, str(workdir), "--workdir")


def test_the_holder_shows_life(tmp_path, monkeypatch):
  monkeypatch.setattr(
    workdir_lease, "Heartbeat", lambda path: heartbeat.Heartbeat(path, interval_seconds=0.01)
  )
  path, seen = tmp_path / held.LEASE_FILE, set()
  with lease_on(tmp_path):
    until_seconds = time.monotonic() + 10
    while len(seen) < 4:
      assert time.monotonic() < until_seconds
      seen.add(path.stat().st_mtime_ns)


def lose(workdir, how):
  """Takes a workdir away; returns what the error has to say."""
  away = workdir.with_name("away")
  match how:
    case "renamed":
      workdir.rename(away)
    case "parent renamed":
      workdir.parent.rename(workdir.parent.with_name("elsewhere"))
    case "removed":
      shutil.rmtree(workdir)
    case "replaced":
      workdir.rename(away)
      workdir.mkdir()
    case "replaced by a copy of another":
      workdir.rename(away)
      write_lease(workdir, ELSEWHERE)
      return "was taken over by process 7 on host other"
    case "replaced by a file":
      workdir.rename(away)
      workdir.write_text("")
      return "is gone"
    case "emptied":
      for path in workdir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
  return "emptied or replaced" if how in ("replaced", "emptied") else "is gone"


HOW = [
  "renamed",
  "parent renamed",
  "removed",
  "replaced",
  "replaced by a copy of another",
  "replaced by a file",
  "emptied",
]


@pytest.mark.parametrize("how", HOW)
def test_a_workdir_that_is_lost_is_noticed_at_the_next_write(how, tmp_path):
  workdir = tmp_path / "parent" / "run"
  order = {"seed": 0, "examples": 8, "batch_size": 2, "repetitions": 1}
  batch = {"position": np.arange(2), "id": np.arange(2), "weight": np.ones(2)}
  arrays = {"w": np.zeros(3, np.float32)}
  everything = {"parameters": arrays, "ema": None, "optimizer": arrays, "data_state": {}}
  with lease_on(workdir), Checkpoints(str(workdir), keep=1) as checkpoints:
    ledger = Ledger(str(workdir))
    ledger.goes_on_from(0)
    metrics = MetricsWriter(str(workdir), restored_step=None)
    ids = IdLog(str(workdir), start=0, process=0, processes=1, order=order)
    message = lose(workdir, how)
    ids.append(1, batch)
    there_before = sorted(tmp_path.rglob("*"))
    for write in (
      lambda: metrics.write({"step": 1, "kind": "train", "loss": 1.0}),
      lambda: MetricsWriter(str(workdir), restored_step=None),
      ids.flush,
      lambda: IdLog(str(workdir), start=1, process=0, processes=1, order=order),
      lambda: ledger.goes_on_from(0),
      lambda: checkpoints.save(1, metadata={"experiment": {}}, **everything),
      ledger.close,
      ids.close,
      metrics.close,
    ):
      with pytest.raises(UserError) as error:
        write()
      assert_one_line(error, f"workdir {str(workdir)!r}", message, "nothing more is written")
    assert sorted(tmp_path.rglob("*")) == there_before
  # What is another's now is not removed.
  if how == "replaced by a copy of another":
    assert (workdir / held.LEASE_FILE).exists()


def test_a_workdir_that_is_lost_while_a_checkpoint_is_saved_is_noticed(tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  arrays = {"w": np.zeros(3, np.float32)}
  everything = {"parameters": arrays, "ema": None, "optimizer": arrays, "data_state": {}}
  check = Checkpoints._write_digests

  def lose_and_check(self):
    shutil.rmtree(workdir)
    check(self)

  monkeypatch.setattr(Checkpoints, "_write_digests", lose_and_check)
  with lease_on(workdir):
    checkpoints = Checkpoints(str(workdir), keep=1)
    checkpoints.save(1, metadata={"experiment": {}}, **everything)
    with pytest.raises(UserError) as error:
      checkpoints.wait()
    assert_one_line(error, "is gone")
    checkpoints.close()
  assert not workdir.exists()


def test_a_run_in_a_folder_that_is_lost_does_not_create_it_again(tmp_path):
  with lease_on(tmp_path / "demo"):
    (tmp_path / "demo").rename(tmp_path / "away")
    with pytest.raises(UserError) as error, lease_on(tmp_path / "demo" / "part"):
      pass
    assert_one_line(error, f"workdir {str(tmp_path / 'demo')!r} is gone")
  assert not (tmp_path / "demo").exists()


def test_another_path_to_the_workdir_is_the_same_lease(tmp_path, monkeypatch):
  (tmp_path / "run").mkdir()
  (tmp_path / "link").symlink_to("run")
  monkeypatch.chdir(tmp_path)
  with lease_on("run"):
    for path in ("run", "./run", tmp_path / "run", "link"):
      with pytest.raises(InUseError), lease_on(path):
        pass
    with writing_to(pathlib.Path("run")):
      pass


def test_an_absent_process_of_the_run_is_told_when_it_sees_another_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lease, "is_first", lambda: False)
  monkeypatch.setattr(workdir_lease, "same_in_all_processes", lambda _: 12)
  for content in (None, ELSEWHERE):
    if content:
      write_lease(tmp_path, content)
    message = re.escape("is not the folder that process 0 writes into")
    with pytest.raises(UserError, match=message), lease_on(tmp_path):
      pass
  write_lease(tmp_path, {**ELSEWHERE, "token": 12})
  with lease_on(tmp_path), writing_to(tmp_path):
    pass
