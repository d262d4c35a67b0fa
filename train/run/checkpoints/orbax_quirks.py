"""Workarounds for behavior of Orbax, as read in orbax-checkpoint 0.12.8."""

import contextlib
import datetime
import logging
import os
import pathlib
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint._src.futures import future
from orbax.checkpoint.path import step as step_lib

from nfnet.buckets import objects
from nfnet.foreign_files.json_text import read_json_object
from nfnet.system.paths import as_path, is_in_bucket
from nfnet.weights.checkpoint_identity import (
  COMMIT_FILE,
  checkpoint_steps,
  committed_names,
  step_of,
)
from train.run.processes import is_first

_UNFINISHED = ".orbax-checkpoint-tmp"
_SECONDS_TO_FINISH = 30


class StepFolders(step_lib.NameFormat[step_lib.Metadata]):
  """Finds the checkpoints that `checkpoint_steps` finds, and no others.

  Orbax's own format also takes digits of other scripts, and reads times that may be damaged.
  """

  def __str__(self) -> str:
    return "StepFolders()"

  def build_name(self, step: int) -> str:
    """Returns the name of a step's folder."""
    return str(step)

  def find_all(self, base_path: epath.PathLike) -> Iterator[step_lib.Metadata]:
    """Yields the steps in a folder, whatever is in their places."""
    for step in checkpoint_steps(base_path):
      yield self.find_step(base_path, step)

  def find_step(self, base_path: epath.PathLike, step: int) -> step_lib.Metadata:
    """Returns a step and its path."""
    return _Step(step=step, path=epath.Path(base_path) / str(step))


class _Step(step_lib.Metadata):
  """A step whose time, which decides nothing here, is not read."""

  @property
  def commit_timestamp(self) -> datetime.datetime:
    """Returns a constant."""
    return datetime.datetime.fromtimestamp(0, datetime.UTC)


class Manager(ocp.CheckpointManager):
  """Orbax's manager, which opens folders in which a checkpoint is damaged or others left things."""

  def __init__(self, directory: pathlib.PurePath, **arguments: Any):
    super().__init__(directory, **arguments)
    # The attribute is private.
    self._checkpoint_deleter = _Deleter(directory)

  def metrics(self, step: int) -> dict[str, float]:
    """Returns the numbers saved with a checkpoint; none if they cannot be read.

    Orbax calls this for every checkpoint when it lists them, and would let errors through.
    """
    path = self.directory / str(step) / "metrics" / "metrics"
    try:
      return {name: float(value) for name, value in read_json_object(path).items()}
    except (OSError, ValueError, TypeError, OverflowError):
      return {}


class _Deleter:
  """Deletes checkpoints.

  Orbax's own would delete `24.orbax-checkpoint-tmp-of-somebody` in place of `24`, and a checkpoint
  that cannot be deleted would make the next save fail.
  """

  def __init__(self, folder: pathlib.PurePath):
    self._folder = folder

  def delete(self, step: int) -> None:
    """Deletes the checkpoint of a step; the first of several processes does it."""
    if is_first():
      try:
        remove_checkpoint(self._folder / str(step))
      except OSError as error:
        absl_logging.warning("checkpoint of step %d could not be deleted: %s", step, error)

  def delete_steps(self, steps: Iterable[int]) -> None:
    """Deletes the checkpoints of some steps."""
    for step in steps:
      self.delete(step)

  def close(self) -> None:
    """Finishes; nothing is open."""


def unfinished_save(folder: pathlib.PurePath, step: int) -> pathlib.PurePath:
  """Returns the folder that becomes the checkpoint of a step when it is renamed.

  In a bucket, it has its final name, and becomes the checkpoint when `COMMIT_FILE` is written.
  """
  return folder / (str(step) if is_in_bucket(folder) else f"{step}{_UNFINISHED}")


def remove_checkpoint(place: pathlib.PurePath) -> None:
  """Removes a checkpoint, so that what an interruption leaves of one in a bucket is none."""
  if is_in_bucket(place):
    path = as_path(place)
    (path / COMMIT_FILE).unlink(missing_ok=True)
    path.rmtree()
  else:
    shutil.rmtree(place)


def remove_unfinished_saves(folder: pathlib.PurePath) -> None:
  """Removes what interrupted saves have left in a folder, and nothing with a similar name."""
  if is_in_bucket(folder):
    names = as_path(folder).names()
    for name in {name.partition("/")[0] for name in names} - set(committed_names(names)):
      if step_of(name) is not None:
        as_path(folder / name).rmtree()
    return
  with contextlib.suppress(FileNotFoundError):
    for name in os.listdir(folder):
      step, suffix = name.removesuffix(_UNFINISHED), name.endswith(_UNFINISHED)
      if suffix and step_of(step) is not None and os.path.isdir(folder / name):
        shutil.rmtree(folder / name)


def finish_threads() -> None:
  """Ends the threads of a failed save, which Orbax leaves running.

  Those that wait for what the failed one should have done, such as a folder that could not be
  created, would keep the process from ending for five minutes or more, and the others would log
  their own failures when nobody keeps them quiet any more.
  """
  deadline_seconds = time.monotonic() + _SECONDS_TO_FINISH
  threads = [one for one in threading.enumerate() if isinstance(one, future._SignalingThread)]
  if threads:
    # What they would have run is abandoned, which Python would say of each.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  for thread in threads:
    # Its loop may have been closed in this moment.
    with contextlib.suppress(RuntimeError):
      thread.cancel()
    # A thread that waits looks only then whether it was canceled.
    future.set_signals(thread._receive_signals, operation_id=thread._operation_id)
  for thread in threads:
    # Their own `join` raises what the thread has raised.
    threading.Thread.join(thread, max(0, deadline_seconds - time.monotonic()))


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
    if "[http_response_code=" in str(error):
      return objects.error_number(error)
    error = error.__cause__ or error.__context__
  return None


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
  return not (record.exc_info and f"orbax{os.sep}checkpoint" in record.pathname)
