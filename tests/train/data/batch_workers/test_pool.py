import errno
import mmap
import operator
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

from nfnet.errors import UserError
from train.data.batch_workers import deaths, messages
from train.data.batch_workers import pool as pool_module
from train.data.batch_workers.deaths import TooManyDeathsError, WorkerDeaths
from train.data.batch_workers.pool import ClosedError, WorkerPool


def pids(pool):
  return [worker._process.pid for worker in pool._workers]


def is_gone(pid):
  return not pathlib.Path(f"/proc/{pid}").exists()


@pytest.fixture
def reports():
  return []


def open_pool(make_batch, count, reports):
  return WorkerPool(make_batch, count, WorkerDeaths(count, reports.append))


def test_signals_to_workers_that_start_are_ignored_and_killed_ones_replaced(reports):
  pool = open_pool(np.full, 3, reports)
  started = pids(pool)
  for pid in started:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      os.kill(pid, number)
    # They are out of reach of what is sent to the group, as by a terminal.
    assert os.getpgid(pid) != os.getpgid(0)
  for i in range(3):
    pool.request((4, 2), i)
  received = [pool.receive() for _ in range(2)]
  assert reports == []
  # One whose turn it is, and one whose batches wait.
  os.kill(started[2], signal.SIGKILL)
  os.kill(started[0], signal.SIGSEGV)
  for i in range(3, 9):
    pool.request((4, 2), i)
  received += [pool.receive() for _ in range(7)]
  np.testing.assert_array_equal(received, [np.full((4, 2), i) for i in range(9)])
  assert sorted(reports) == [
    "a data worker was killed (SIGKILL, perhaps because memory ran out); another one makes the "
    "same batches",
    "a data worker was killed (SIGSEGV); another one makes the same batches",
  ]
  last = pids(pool)
  pool.close()
  assert all(map(is_gone, started + last))


def test_a_worker_that_is_stopped_for_good_is_replaced(reports, monkeypatch):
  monkeypatch.setattr(pool_module, "STOPPED_SECONDS_MAX", 1)
  monkeypatch.setattr(pool_module, "_POLL_SECONDS", 0.1)
  pool = open_pool(np.full, 1, reports)
  (pid,) = pids(pool)
  os.kill(pid, signal.SIGSTOP)
  pool.request((4, 2), 0)
  # One that goes on in time has only been slow.
  threading.Timer(0.4, os.kill, (pid, signal.SIGCONT)).start()
  received = [pool.receive()]
  assert reports == []
  os.kill(pid, signal.SIGSTOP)
  for i in range(1, 3):
    pool.request((4, 2), i)
  received += [pool.receive() for _ in range(2)]
  np.testing.assert_array_equal(received, [np.full((4, 2), i) for i in range(3)])
  assert reports == [
    "a data worker was stopped for 1 s and has been killed; another one makes the same batches"
  ]
  assert is_gone(pid)
  pool.close()


def test_errors_of_a_worker_are_raised_and_others_answer(reports):
  pool = open_pool(operator.truediv, 1, reports)
  for divisor in (2, 0, 4):
    pool.request(1, divisor)
  assert pool.receive() == 0.5
  with pytest.raises(ZeroDivisionError) as raised:
    pool.receive()
  assert "in a data worker:\nTraceback" in raised.value.__notes__[0]
  assert pool.receive() == 0.25
  pool.close()


def test_a_worker_that_ends_by_itself_is_not_started_again(reports):
  pool = open_pool(os._exit, 1, reports)
  pool.request(3)
  with pytest.raises(RuntimeError, match="a data worker ended with code 3; its output says why"):
    pool.receive()
  pool.close()


# Classes that only the worker has do not pickle.
RAISE_ITS_OWN_ERROR = "exec('class E(Exception): pass') or exec('raise E(7)')"


def test_what_does_not_pickle_is_an_error_too(reports):
  pool = open_pool(eval, 1, reports)
  pool.request("lambda: 0")
  with pytest.raises(RuntimeError, match=r"(?i)pickle"):
    pool.receive()
  pool.request(RAISE_ITS_OWN_ERROR)
  with pytest.raises(RuntimeError, match="E: 7"):
    pool.receive()
  pool.close()


def test_a_worker_that_cannot_be_started_is_tried_again(reports, monkeypatch):
  start, failures = subprocess.Popen, iter([errno.ENOMEM, errno.EMFILE])

  def start_late(*arguments, **options):
    for number in failures:
      raise OSError(number, os.strerror(number))
    return start(*arguments, **options)

  monkeypatch.setattr(pool_module, "_SECONDS_TO_RETRY", 0.01)
  monkeypatch.setattr(subprocess, "Popen", start_late)
  pool = open_pool(operator.add, 1, reports)
  pool.request(1, 2)
  assert pool.receive() == 3
  assert [text.split(";")[0] for text in reports] == [
    "a data worker could not be started (Cannot allocate memory)",
    "a data worker could not be started (Too many open files)",
  ]
  pool.close()


def test_workers_that_are_killed_again_and_again_are_given_up(reports, monkeypatch):
  monkeypatch.setattr(deaths, "DEATHS_MAX", 2)
  counter = WorkerDeaths(0, reports.append)
  pool = WorkerPool(signal.raise_signal, 1, counter)
  pool.request(signal.SIGKILL)
  assert not counter.are_too_many()
  with pytest.raises(TooManyDeathsError, match=r"4 data workers .* set fewer data\.workers"):
    pool.receive()
  assert counter.are_too_many()
  assert issubclass(TooManyDeathsError, UserError)
  assert len(reports) == 4
  pool.close()


def test_deaths_of_long_ago_do_not_count(monkeypatch):
  monkeypatch.setattr(deaths, "DEATHS_MAX", 1)
  counter = WorkerDeaths(0, lambda text: None)
  counter.add("was killed")
  assert counter.are_too_many()
  monkeypatch.setattr(deaths, "WINDOW_SECONDS", 0)
  assert not counter.are_too_many()
  # A machine may lose all of its workers at once, several times.
  monkeypatch.undo()
  counter = WorkerDeaths(16, lambda text: None)
  for _ in range(3 * 16 - 1):
    counter.add("was killed")
  assert not counter.are_too_many()


def test_closing_wakes_who_waits_for_a_worker_that_is_stuck(reports):
  pool = open_pool(time.sleep, 1, reports)
  (pid,) = pids(pool)
  pool.request(1000)
  os.kill(pid, signal.SIGSTOP)
  raised = []

  def wait():
    try:
      pool.receive()
    except ClosedError as error:
      raised.append(error)

  thread = threading.Thread(target=wait)
  thread.start()
  time.sleep(0.2)
  started_seconds = time.monotonic()
  pool.close()
  thread.join(5)
  assert raised
  assert time.monotonic() - started_seconds < 3
  assert is_gone(pid)
  assert reports == []


@pytest.mark.parametrize("has_memory_files", [True, False])
def test_messages_carry_arrays_in_memory_without_a_name(has_memory_files, monkeypatch):
  if not has_memory_files:
    monkeypatch.delattr(os, "memfd_create")
  descriptors = len(os.listdir("/proc/self/fd"))
  one, other = socket.socketpair()
  with one, other:
    sent = {"image": np.arange(10**6), "empty": np.zeros((3, 0)), "text": "a", "more": np.ones(7)}
    messages.send(one, sent)
    messages.send(one, None)
    received = messages.receive(other)
    assert messages.receive(other) is None
    one.close()
    with pytest.raises(EOFError):
      messages.receive(other)
  assert received.keys() == sent.keys()
  for name, value in sent.items():
    np.testing.assert_array_equal(received[name], value)
  # The array is not a copy of the memory, and may be changed.
  base = received["image"]
  while isinstance(base, np.ndarray):
    base = base.base
  assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
  received["image"][0] = 5
  if has_memory_files:
    assert "/memfd:nfnets-batch" in pathlib.Path("/proc/self/maps").read_text()
  del received, base, value
  assert len(os.listdir("/proc/self/fd")) == descriptors
