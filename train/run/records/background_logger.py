"""Runs the loggers of users beside a training, which neither waits for them nor fails with them.

A logger works in a thread of its own, which takes records from a queue. One that raises, that does
not return, or whose queue is full is left out from then on, with one logged warning. metrics.jsonl
has all records in any case.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from nfnet.errors import format_count, quoted, shortened
from train.config.own_functions import raised
from train.run.records.loggers import Logger, MakeLogger, Run

RECORDS_WAITING_MAX = 1000
SILENT_SECONDS_MAX = 300.0
"""Time that one call of a logger may take: an upload may be tried again for minutes."""
CLOSE_SECONDS_MAX = 30.0
"""Time that all loggers together get for what is left when the run ends. Those who have told a run
to end often kill it soon afterwards."""

_SAYS_NOTHING_SECONDS = 2.0
"""Time at the end of a run after which the person who waits is told why."""


class BackgroundLogger:
  """A logger of a user, in a thread of its own."""

  def __init__(
    self,
    name: str,
    make: MakeLogger,
    run: Run,
    *,
    silent_seconds_max: float = SILENT_SECONDS_MAX,
  ):
    """Starts the thread, which makes the logger.

    Args:
      name: how the user has named it, for messages.
      make: function that makes it.
      run: what the function is called with.
      silent_seconds_max: time that one call may take.
    """
    self._name = name
    self._silent_seconds_max = silent_seconds_max
    self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(RECORDS_WAITING_MAX)
    self._called_seconds: float | None = time.monotonic()
    self._failure: str | None = None
    self._is_left_out = threading.Event()
    # Python does not wait for daemons when it ends.
    self._thread = threading.Thread(
      target=self._work, args=(make, run), name=f"logger {name}", daemon=True
    )
    self._thread.start()

  def write(self, record: Mapping[str, Any]) -> None:
    """Hands a record to the logger, unless it has been left out."""
    if self._is_left_out.is_set():
      return
    called_seconds = self._called_seconds
    if self._failure is not None:
      self._leave_out(self._failure)
    elif (
      called_seconds is not None and time.monotonic() > called_seconds + self._silent_seconds_max
    ):
      self._leave_out(f"it has not returned from a call for {self._silent_seconds_max:g} s")
    else:
      try:
        # A copy, because the logger may change it.
        self._records.put_nowait(dict(record))
      except queue.Full:
        self._leave_out(f"it is {format_count(RECORDS_WAITING_MAX, 'record')} behind")

  def finish(self) -> None:
    """Tells the logger that there are no more records."""
    if not self._is_left_out.is_set():
      try:
        self._records.put_nowait(None)
      except queue.Full:
        self._leave_out(f"it is {format_count(RECORDS_WAITING_MAX, 'record')} behind")

  def is_done(self, timeout_seconds: float) -> bool:
    """Waits for the logger to close after `finish`; returns whether it needs no more waiting."""
    if not self._is_left_out.is_set():
      self._thread.join(timeout_seconds)
    return self._is_left_out.is_set() or not self._thread.is_alive()

  def give_up(self, waited_seconds: float) -> None:
    """Says what has become of a logger that failed, or has not closed in the time that it had."""
    if self._is_left_out.is_set():
      return
    if self._failure is not None:
      self._leave_out(self._failure)
    elif self._thread.is_alive():
      self._leave_out(f"it has not closed in {waited_seconds:g} s; its last records may be lost")

  def _leave_out(self, reason: str) -> None:
    self._is_left_out.set()
    logging.warning(
      "logger %s is left out: %s; the run does not need it", shortened(self._name), reason
    )

  def _work(self, make: MakeLogger, run: Run) -> None:
    """Makes the logger and hands it the records."""
    try:
      logger = make(run)
      if not isinstance(logger, Logger):
        self._failure = f"it made {quoted(logger)}, which has no methods write and close"
        return
      self._called_seconds = None
      while not self._is_left_out.is_set() and (record := self._records.get()) is not None:
        self._called_seconds = time.monotonic()
        logger.write(record)
        self._called_seconds = None
      self._called_seconds = time.monotonic()
      logger.close()
    # It may raise anything, SystemExit included.
    except BaseException as error:
      self._failure = f"it raised {raised(error)}"


@contextlib.contextmanager
def running_loggers(
  makers: Mapping[str, MakeLogger], run: Run, *, close_seconds_max: float = CLOSE_SECONDS_MAX
) -> Iterator[list[BackgroundLogger]]:
  """Makes loggers and closes them at the end, in `close_seconds_max` altogether.

  Args:
    makers: functions that make them, by the names that the user has given.
    run: run whose records they get.
    close_seconds_max: time that they get for what is left at the end.
  """
  loggers = [BackgroundLogger(name, make, run) for name, make in makers.items()]
  try:
    yield loggers
  finally:
    for logger in loggers:
      logger.finish()
    began_seconds = time.monotonic()
    if not all(logger.is_done(_SAYS_NOTHING_SECONDS / len(loggers)) for logger in loggers):
      print(f"waiting up to {close_seconds_max:g} s for loggers to close", flush=True)
    for logger in loggers:
      logger.is_done(max(0.0, began_seconds + close_seconds_max - time.monotonic()))
    for logger in loggers:
      logger.give_up(close_seconds_max)
