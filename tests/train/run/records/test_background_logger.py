import logging
import threading
import time

import pytest

from train.run.records import background_logger
from train.run.records.background_logger import BackgroundLogger, running_loggers
from train.run.records.loggers import Run

RUN = Run(id="0" * 32, name="n", workdir="w", configuration={}, total_steps=9, resumed_step=0)
AT_ONCE_SECONDS = 1.0


class Kept:
  """A logger that keeps what it gets, and does as it is told at one of its calls."""

  def __init__(self, run, *, fails_at=None, fail=None):
    self.fails_at, self.fail = fails_at, fail
    self.calls = []
    self._call("make", run)

  def write(self, record):
    self._call("write", dict(record))
    record.clear()

  def close(self):
    self._call("close", None)

  def _call(self, name, value):
    self.calls.append((name, value))
    if name == self.fails_at:
      self.fail()


@pytest.fixture
def warnings(caplog):
  caplog.set_level(logging.WARNING)
  return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def hang():
  """A function that returns when the test is over."""
  over = threading.Event()
  yield over.wait
  over.set()


def use(makers, records, **limits):
  """Runs loggers over records; returns them, and the seconds that a training would have lost."""
  made = []

  def keeping(make):
    def make_and_keep(run):
      made.append(make(run))
      return made[-1]

    return make_and_keep

  with running_loggers({n: keeping(m) for n, m in makers.items()}, RUN, **limits) as loggers:
    began_seconds = time.monotonic()
    for record in records:
      for logger in loggers:
        logger.write(record)
    lost_seconds = time.monotonic() - began_seconds
  return made, lost_seconds


def test_a_logger_gets_the_run_all_records_and_the_end(warnings):
  records = [{"step": step, "kind": "train", "loss": 1.0} for step in range(500)]
  (logger,), _ = use({"a:b": Kept}, records)
  assert logger.calls == [
    ("make", RUN),
    *(("write", record) for record in records),
    ("close", None),
  ]
  assert warnings() == []


def leave():
  raise SystemExit(3)


def fail():
  raise RuntimeError("no network")


@pytest.mark.parametrize("fails_at", ["make", "write", "close"])
@pytest.mark.parametrize(
  ("how", "text"), [(fail, "RuntimeError: no network"), (leave, "SystemExit")]
)
def test_one_that_raises_is_left_out_and_the_other_goes_on(warnings, fails_at, how, text):
  def bad(run):
    return Kept(run, fails_at=fails_at, fail=how)

  records = [{"step": step} for step in range(3)]
  made, _ = use({"m:bad": bad, "m:good": Kept}, records)
  assert made[-1].calls[-1] == ("close", None)
  assert len(made[-1].calls) == 5
  (warning,) = warnings()
  assert warning.startswith("logger m:bad is left out: ")
  assert text in warning
  assert ", line " in warning


@pytest.mark.parametrize("fails_at", ["make", "write", "close"])
def test_one_that_hangs_costs_a_moment_at_the_end(warnings, capsys, hang, monkeypatch, fails_at):
  monkeypatch.setattr(background_logger, "_SAYS_NOTHING_SECONDS", 0.02)

  def bad(run):
    return Kept(run, fails_at=fails_at, fail=hang)

  began_seconds = time.monotonic()
  _, lost_seconds = use({"m:bad": bad}, [{"step": 1}, {"step": 2}], close_seconds_max=0.05)
  assert lost_seconds < AT_ONCE_SECONDS
  assert 0.05 <= time.monotonic() - began_seconds < 0.05 + AT_ONCE_SECONDS
  assert warnings() == [
    "logger m:bad is left out: it has not closed in 0.05 s; its last records may be lost; "
    "the run does not need it"
  ]
  assert capsys.readouterr().out == "waiting up to 0.05 s for loggers to close\n"


def test_one_that_hangs_is_left_out_after_a_while(warnings, hang):
  logger = BackgroundLogger(
    "m:bad", lambda run: Kept(run, fails_at="write", fail=hang), RUN, silent_seconds_max=0.02
  )
  logger.write({"step": 1})
  deadline_seconds = time.monotonic() + 10
  while not warnings() and time.monotonic() < deadline_seconds:
    time.sleep(0.01)
    logger.write({"step": 2})
  logger.write({"step": 3})
  assert warnings() == [
    "logger m:bad is left out: it has not returned from a call for 0.02 s; the run does not need it"
  ]


def test_one_that_is_too_slow_is_left_out(warnings, hang, monkeypatch):
  monkeypatch.setattr(background_logger, "RECORDS_WAITING_MAX", 3)
  bad = lambda run: Kept(run, fails_at="write", fail=hang)  # noqa: E731
  _, lost_seconds = use({"m:bad": bad}, [{"step": step} for step in range(9)])
  assert lost_seconds < AT_ONCE_SECONDS
  assert warnings() == [
    "logger m:bad is left out: it is 3 records behind; the run does not need it"
  ]


def test_what_is_no_logger_is_left_out(warnings):
  use({"m:bad": lambda run: 3}, [{"step": 1}])
  assert warnings() == [
    "logger m:bad is left out: it made 3, which has no methods write and close; "
    "the run does not need it"
  ]
