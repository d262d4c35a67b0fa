"""Joins the processes of one run: one for each host of a slice, or several on one machine.

All run the same command. On a TPU slice, `--multi_host` has JAX ask the environment (Cloud TPU,
GKE) which process this is; elsewhere, flags say so:

    python -m train.pretrain ... --coordinator=HOST:PORT --process_count=4 --process_index=0

where HOST is the host of process 0. The first process writes metrics, plots and the progress line.
`train.run.process_watch` ends the others when one of them dies.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from nfnet.command_line import report_error
from nfnet.errors import UserError
from train.run.exit_codes import EXIT_LOST_PROCESS
from train.run.process_watch import (
  JOINED_SECONDS_MAX,
  NOTICED_SECONDS_MAX,
  SIGN_OF_LIFE_SECONDS,
  ProcessWatch,
  start_up_watch,
)
from train.run.termination import Terminated

_JAX_HEARTBEAT_SECONDS = 100
"""Timeout after which JAX itself ends all processes, with stack traces, if one is silent. It does
so after half of this time at the earliest, which is later than `train.run.process_watch`."""
_JAX_SHUTDOWN_SECONDS = 3600
"""Time that a process may take at its end for what the others do not do, such as plots. The watch
notices within seconds if it does nothing any more."""

_MULTI_HOST = flags.DEFINE_bool("multi_host", False, "Join the processes of this TPU slice.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, for processes that are not on a TPU slice."
)
_PROCESS_COUNT = flags.DEFINE_integer(
  "process_count", None, "Number of processes, with --coordinator."
)
_PROCESS_INDEX = flags.DEFINE_integer(
  "process_index", None, "Index of this process, with --coordinator."
)


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the other processes that the flags name, if any; to be entered before JAX is used.

  When another process has died, this one ends at once with one line and `EXIT_LOST_PROCESS`,
  because the usual exit handlers would wait for the other process. An error in this process also
  ends it at once, with the same exit code as without other processes.

  Raises:
    UserError: the flags do not fit together.
    SystemExit: process 0 cannot be found; the code is `EXIT_LOST_PROCESS`.
  """
  told = (_COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value)
  is_told = told != (None, None, None)
  if not _MULTI_HOST.value and not is_told:
    yield
    return
  if _MULTI_HOST.value == is_told or (is_told and None in told):
    raise UserError(
      "give --multi_host on a TPU slice, or --coordinator, --process_count and --process_index, "
      "all three, anywhere else"
    )
  if is_told and not 0 <= _PROCESS_INDEX.value < _PROCESS_COUNT.value:
    raise UserError(
      f"--process_index={_PROCESS_INDEX.value} is not one of --process_count="
      f"{_PROCESS_COUNT.value} processes, which are counted from 0"
    )
  try:
    with start_up_watch(_PROCESS_INDEX.value):
      jax.distributed.initialize(
        *told,
        # The watch ends this process in one line before JAX aborts it.
        initialization_timeout=2 * JOINED_SECONDS_MAX,
        heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_JAX_SHUTDOWN_SECONDS,
      )
  except ValueError as error:
    message = str(error).splitlines()[0]
    raise UserError(f"the processes cannot be joined: {message}") from error
  except RuntimeError as error:
    # Process 0's address cannot be resolved yet.
    message = str(error).splitlines()[0]
    print(
      f"error: the processes could not be joined: {message}; start all of them again",
      file=sys.stderr,
    )
    sys.exit(EXIT_LOST_PROCESS)
  watch = ProcessWatch()
  try:
    yield
  except Terminated:
    # All processes end this way, so none has to be told of an error.
    watch.shut_down()
    raise
  except SystemExit as error:
    _leave_at_once(watch, int(error.code or 0))
  except BaseException as error:
    if not isinstance(error, UserError | KeyboardInterrupt):
      # A collective or a save may notice that another process has died before the watch does.
      print(
        f"process {jax.process_index()}: {type(error).__name__}; waiting up to "
        f"{NOTICED_SECONDS_MAX} s to hear whether another process is gone",
        file=sys.stderr,
        flush=True,
      )
      time.sleep(NOTICED_SECONDS_MAX)
    _leave_at_once(watch, report_error(error))
  watch.shut_down()


def _leave_at_once(watch: ProcessWatch, code: int) -> NoReturn:
  """Tells the others of the failure of this process, whose output says why, and ends it."""
  watch.tell_failure()
  if is_first():
    # The others learn of the error from the store, which process 0 holds.
    time.sleep(2 * SIGN_OF_LIFE_SECONDS)
  # At exit, JAX would wait for the others, which leave without notice, and then abort.
  os._exit(code)


def is_first() -> bool:
  """Returns whether this is the first process, which writes the files that a run has only once."""
  return jax.process_index() == 0


def same_in_all_processes(number: int) -> int:
  """Returns the first process's value of a number below 2^64."""
  # Without its 64-bit mode, JAX broadcasts integers of 32 bits at most.
  halves = np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)
  high, low = multihost_utils.broadcast_one_to_all(halves)
  return int(high) << 32 | int(low)
