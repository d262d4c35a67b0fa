"""Workarounds for behavior of Orbax, as read in orbax-checkpoint 0.12.8."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import orbax.checkpoint as ocp
from absl import logging as absl_logging


def wait_for_cleanup(manager: ocp.CheckpointManager) -> None:
  """Blocks until a newly opened manager has removed the remains of interrupted saves.

  Orbax waits for this only at the first save. A run that ends before that would print the traceback
  of a thread that is still at work while the interpreter shuts down. The method called is private.
  """
  manager._maybe_await_cleanup_tmp_directory()


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
  """Keeps Orbax from logging tracebacks of failed saves, whose errors it also raises."""
  logger = absl_logging.get_absl_logger()
  logger.addFilter(_is_no_orbax_traceback)
  try:
    yield
  finally:
    logger.removeFilter(_is_no_orbax_traceback)


def os_error_number(error: BaseException | None) -> int | None:
  """Returns the error number (errno) of the error that made a save fail, or None.

  TensorStore raises a ValueError with the number in its text.

  Args:
    error: error that was raised; its causes are searched too.
  """
  while error is not None:
    if isinstance(error, OSError) and error.errno is not None:
      return error.errno
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
      return int(found[1])
    error = error.__cause__ or error.__context__
  return None


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
  return not (record.exc_info and f"orbax{os.sep}checkpoint" in record.pathname)
