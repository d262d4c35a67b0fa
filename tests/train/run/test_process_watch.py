"""Silence of other processes, above all of process 0; `test_processes` has real processes."""

import contextlib
import socket
import threading
import time

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from tests.processes import wait_for
from train.run import process_watch, processes
from train.run.exit_codes import EXIT_LOST_PROCESS
from train.run.process_watch import ProcessWatch, _greet, _watch_start_up
from train.run.termination import Terminated


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
    self.is_gone = False
    self.words = {}

  def key_value_set(self, name, word, **__):
    self.answers.wait()
    if self.is_gone:
      raise jax.errors.JaxRuntimeError("UNAVAILABLE")
    self.words[name] = word

  def key_value_dir_get(self, folder):
    return [(name, word) for name, word in self.words.items() if name.startswith(folder)]


@pytest.fixture
def store(monkeypatch, left):
  """A store of which a watch notices soon that it does not answer."""
  monkeypatch.setattr(process_watch, "_SILENCES_MAX", 10)
  store = Store()
  monkeypatch.setattr(process_watch, "_key_value_store", lambda: store)
  # In a thread, an error would be one of the test.
  monkeypatch.setattr(process_watch, "_leave", left.append)
  yield store
  store.answers.set()


def test_a_store_that_does_not_answer_is_not_waited_for(left, store):
  watch = ProcessWatch()
  time.sleep(0.6)
  assert left == []
  store.answers.clear()
  wait_for(lambda: left)
  assert set(left) == {SILENCE}
  store.answers.set()
  watch.tell_failure()


OTHER = f"{process_watch._FOLDER}1"
AT_THE_END = {
  "process 0 is silent": (lambda store: store.answers.clear(), SILENCE),
  "process 0 is gone": (
    lambda store: setattr(store, "is_gone", True),
    "process 0, which coordinates, does not answer",
  ),
  "process 1 is silent": (
    lambda store: store.words.update({OTHER: "7"}),
    "process 1 has been silent for 0 s",
  ),
  "process 1 fails": (
    lambda store: store.words.update({OTHER: "failed"}),
    "process 1 has failed; its own output says why",
  ),
}


@pytest.fixture
def run_of_several(monkeypatch, store):
  """Flags and functions of JAX as in one of two processes; yields what its shutdown does."""
  happens = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
  monkeypatch.setattr(jax.distributed, "shutdown", lambda: [one() for one in happens])
  monkeypatch.setattr(process_watch, "_coordinator_address", lambda: None)
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(coordinator="localhost:1", process_count=2, process_index=0):
    yield happens


@pytest.mark.parametrize("end", [None, Terminated], ids=["end", "terminated"])
@pytest.mark.parametrize("fault", AT_THE_END)
def test_the_others_are_watched_until_all_have_come_to_their_end(
  fault, end, left, store, run_of_several
):
  cause, reason = AT_THE_END[fault]
  run_of_several += [lambda: cause(store), lambda: wait_for(lambda: left, seconds_max=10)]
  with contextlib.suppress(Terminated), processes.joined():
    if end:
      raise end
  assert left[0] == reason


def test_processes_that_leave_together_are_not_missed(left, store, run_of_several):
  # For the others, process 0 is gone a moment before they have left.
  run_of_several += [lambda: time.sleep(0.4), lambda: setattr(store, "is_gone", True)]
  with processes.joined():
    pass
  time.sleep(0.4)
  assert left == []


def test_a_failure_is_told_to_the_others_but_not_to_a_silent_process_0(left, store):
  ProcessWatch().tell_failure()
  assert list(store.words.values()) == ["failed"]
  watch = ProcessWatch()
  store.answers.clear()
  began_seconds = time.monotonic()
  watch.tell_failure()
  assert time.monotonic() - began_seconds < 1
  assert left == []


def test_processes_that_were_stopped_together_are_not_missed(left, store, monkeypatch):
  """A scheduler may suspend a whole job for longer than a silence may last."""
  clock = time.monotonic
  watch = ProcessWatch()
  for count in range(40):
    store.words[OTHER] = str(count)
    # All clocks have gone on meanwhile.
    monkeypatch.setattr(time, "monotonic", lambda count=count: clock() + 100 * count)
    time.sleep(0.03)
  watch.tell_failure()
  assert left == []


@pytest.mark.parametrize(("who", "seconds"), [(None, 0.2), ("process 1", 0.0)])
def test_process_0_leaves_after_the_others_which_need_its_store(who, seconds, monkeypatch, capsys):
  monkeypatch.setattr(process_watch, "SIGN_OF_LIFE_SECONDS", 0.1)
  slept, codes = [], []
  monkeypatch.setattr(time, "sleep", slept.append)
  monkeypatch.setattr(process_watch, "end_process", lambda code: codes.append((code, sum(slept))))
  process_watch._leave("process 2 has been silent for 33 s", who=who)
  assert codes == [(EXIT_LOST_PROCESS, seconds)]
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{who or 'process 0 of 1'} has lost another one: process 2 has been silent" in line
