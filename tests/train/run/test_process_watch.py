"""Silence of process 0, which coordinates; `test_processes` has real processes."""

import contextlib
import socket
import threading
import time

import pytest

from tests.processes import wait_for
from train.run import process_watch
from train.run.process_watch import ProcessWatch, _greet, _watch_start_up


@contextlib.contextmanager
def server(answer):
  """Yields HOST:PORT of a server; without an answer it is like a process that is stopped."""
  with socket.create_server(("localhost", 0)) as listening:

    def serve():
      with contextlib.suppress(OSError):
        while True:
          connection, _ = listening.accept()
          with connection:
            connection.recv(100)
            connection.sendall(answer)

    if answer is not None:
      threading.Thread(target=serve, daemon=True).start()
    yield f"localhost:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def left(monkeypatch):
  """Reasons for which this process would have ended, in a watch that is in a hurry."""
  reasons = []

  def leave(reason, *, who=None):
    reasons.append((who, reason))
    raise SystemExit

  monkeypatch.setattr(process_watch, "_leave", leave)
  monkeypatch.setattr(process_watch, "SIGN_OF_LIFE_SECONDS", 0.02)
  monkeypatch.setattr(process_watch, "SILENT_SECONDS_MAX", 0.2)
  return reasons


SILENCE = "process 0, which coordinates, has been silent for 0.2 s"


@pytest.mark.parametrize(("answer", "expected"), [(b"settings", True), (b"", False), (None, False)])
def test_greeting(answer, expected, left):
  with server(answer) as address:
    assert _greet(address) is expected
  assert _greet(address) is None
  assert _greet("no.such.host.invalid:1") is None


def watch_start_up(monkeypatch, address, seconds, index=1):
  monkeypatch.setattr(process_watch, "_coordinator_address", lambda: address)
  joined = threading.Event()
  threading.Timer(seconds, joined.set).start()
  with contextlib.suppress(SystemExit):
    _watch_start_up(index, joined)


def test_process_0_that_is_there_but_silent_is_not_waited_for(left, monkeypatch):
  with server(None) as address:
    watch_start_up(monkeypatch, address, 20)
  assert left == [("process 1", SILENCE)]


def test_process_0_that_answers_or_was_not_there_yet_is_waited_for(left, monkeypatch):
  with server(b"settings") as address:
    watch_start_up(monkeypatch, address, 1)
  # The same address, where nobody listens any more.
  watch_start_up(monkeypatch, address, 1)
  watch_start_up(monkeypatch, None, 0.2, index=None)
  with server(None) as address:
    watch_start_up(monkeypatch, address, 1, index=0)
  assert left == []


def test_process_0_that_is_gone_again_is_not_waited_for(left, monkeypatch):
  with server(b"settings") as address:
    threading.Timer(0.5, monkeypatch.setattr, (process_watch, "_greet", lambda _: None)).start()
    watch_start_up(monkeypatch, address, 20)
  assert left == [("process 1", SILENCE)]


def test_processes_that_do_not_appear_are_not_waited_for_forever(left, monkeypatch):
  monkeypatch.setattr(process_watch, "JOINED_SECONDS_MAX", 0.1)
  watch_start_up(monkeypatch, None, 20, index=0)
  assert left == [("process 0", "not all processes have appeared within 0.1 s")]


class Store:
  """Stands in for JAX's store, which waits for process 0 without a limit."""

  def __init__(self):
    self.answers = threading.Event()
    self.answers.set()

  def key_value_set(self, *_, **__):
    self.answers.wait()

  def key_value_dir_get(self, folder):
    return []


def test_a_store_that_does_not_answer_is_not_waited_for(left, monkeypatch):
  monkeypatch.setattr(process_watch, "_NO_ANSWERS_MAX", 10)
  store = Store()
  monkeypatch.setattr(process_watch, "_key_value_store", lambda: store)
  # In a thread, an error would be one of the test.
  monkeypatch.setattr(process_watch, "_leave", left.append)
  watch = ProcessWatch()
  time.sleep(0.6)
  assert left == []
  store.answers.clear()
  wait_for(lambda: left)
  assert set(left) == {SILENCE}
  store.answers.set()
  watch.stop(process_watch.FINISHED)
