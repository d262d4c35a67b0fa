"""What `Termination` makes of signals, in this process."""

import hashlib
import os
import signal
import threading
import time

import pytest

from tests.processes import wait_for
from train.run import termination
from train.run.exit_codes import EXIT_INTERRUPTED, EXIT_LOST_PROCESS, EXIT_TERMINATED
from train.run.leases.workdir_lease import lease_on
from train.run.termination import Terminated, Termination


@pytest.fixture
def exits(monkeypatch):
  """Codes with which this process would have ended at once."""
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  return codes


def send(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPTED)]
)
def test_a_run_with_steps_to_save_is_only_told(number, code, exits, monkeypatch):
  monkeypatch.setattr(termination, "_START_UP_ENDS_SECONDS", 0)
  before = signal.getsignal(number)
  with Termination() as listener:
    listener.begin_steps()
    assert not listener.is_due()
    send(number)
    wait_for(listener.is_due)
    assert listener.is_due_alone()
    assert listener.code == code
    time.sleep(0.1)
  assert exits == []
  assert signal.getsignal(number) is before
  assert Terminated(listener.code).code == code


def test_a_second_ctrl_c_ends_at_once_but_an_echo_of_the_first_does_not(exits, monkeypatch):
  with Termination() as listener:
    listener.begin_steps()
    send(signal.SIGINT)
    wait_for(listener.is_due)
    send(signal.SIGINT)
    time.sleep(0.1)
    assert exits == []
    monkeypatch.setattr(termination, "_SAME_PRESS_SECONDS", 0)
    send(signal.SIGINT)
    wait_for(lambda: exits == [EXIT_INTERRUPTED])


def test_a_closed_terminal_and_what_comes_after_the_first_signal_change_nothing(exits):
  before = signal.getsignal(signal.SIGHUP)
  with Termination() as listener:
    listener.begin_steps()
    send(signal.SIGHUP)
    time.sleep(0.1)
    assert not listener.is_due()
    listener.request(EXIT_LOST_PROCESS, "why")
    send(signal.SIGTERM)
    time.sleep(0.1)
    assert (listener.code, listener.reason) == (EXIT_LOST_PROCESS, "why")
  assert signal.getsignal(signal.SIGHUP) is before
  assert exits == []


@pytest.mark.parametrize(
  ("number", "code", "verb"),
  [
    (signal.SIGTERM, EXIT_TERMINATED, "terminated"),
    (signal.SIGINT, EXIT_INTERRUPTED, "interrupted"),
  ],
)
def test_a_compilation_is_not_waited_for(number, code, verb, exits, monkeypatch, capfd):
  monkeypatch.setattr(termination, "_START_UP_ENDS_SECONDS", 0.2)
  with Termination() as listener:
    ended_seconds = []
    threading.Timer(0.1, send, args=(number,)).start()

    def watch():
      wait_for(lambda: exits)
      ended_seconds.append(time.monotonic())

    thread = threading.Thread(target=watch)
    thread.start()
    # The main thread is in C for some seconds, where Python runs no handler.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)
    left_seconds = time.monotonic()
    thread.join()
    assert listener.is_due()
  assert exits == [code]
  assert ended_seconds[0] < left_seconds
  assert capfd.readouterr().err == f"{verb} before the first step since the start\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_up_that_is_ended_gives_the_lease_back(number, exits, monkeypatch, tmp_path):
  monkeypatch.setattr(termination, "_START_UP_ENDS_SECONDS", 0)
  with lease_on(tmp_path), Termination():
    send(number)
    wait_for(lambda: exits)
    assert not list(tmp_path.iterdir())


def test_an_orderly_end_of_the_start_up_is_left_alone(exits, monkeypatch):
  monkeypatch.setattr(termination, "_START_UP_ENDS_SECONDS", 0.2)
  with Termination() as listener:
    send(signal.SIGTERM)
    wait_for(listener.is_due)
  time.sleep(0.4)
  assert exits == []
