"""Says where the checkpoints of a run lie, and whether one of them is what its place says.

A checkpoint knows its step and its run, a random name that is drawn when a run begins and that
`run.json` in the workdir repeats. So a checkpoint that was renamed, or copied in from another run,
is noticed. Checkpoints of versions before this one do not name their run and are taken for the
workdir's own.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nfnet.errors import UserError, quoted
from nfnet.foreign_files.json_text import read_json_object
from nfnet.system.durable_files import write_durably
from nfnet.system.paths import as_path, is_in_bucket

CHECKPOINTS_FOLDER = "checkpoints"
RUN_FILE = "run.json"
COMMIT_FILE = "commit_success.txt"
"""File that Orbax writes last; in a bucket, where nothing can be renamed, it makes a checkpoint."""
STEP_KEY, RUN_KEY = "step", "run"
"""Keys of a checkpoint's metadata; `run.json` has the second one too."""

_STEP_NAME = re.compile("[1-9][0-9]{0,9}")
_STEP_MAX = 2**31 - 1
_RUN_FILE_BYTES_MAX = 1000


def step_of(name: str) -> int | None:
  """Returns the step whose checkpoint a folder of this name is; None for any other name."""
  step = int(name) if _STEP_NAME.fullmatch(name) else 0
  return step if 0 < step <= _STEP_MAX else None


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
  """Returns the steps whose checkpoints lie in a folder, in ascending order.

  Anything with another name than a save gives to its folder is left out, and in a bucket a
  checkpoint whose save has not ended.

  Args:
    folder: folder of a run's checkpoints, here or in a bucket; need not exist.

  Raises:
    UserError: the folder cannot be listed.
  """
  try:
    in_bucket = is_in_bucket(folder)
    names = committed_names(as_path(folder).names()) if in_bucket else os.listdir(folder)
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise UserError(f"{os.fspath(folder)!r} cannot be listed: {error.strerror}") from error
  return sorted(step for name in names if (step := step_of(name)) is not None)


def committed_names(objects: Iterable[str]) -> list[str]:
  """Returns the names of the folders of a bucket in which a save has ended.

  Args:
    objects: paths of the objects in the folder of the checkpoints.
  """
  return [
    name for name, _, inner in (one.partition("/") for one in objects) if inner == COMMIT_FILE
  ]


def find_mix_up(folder: pathlib.PurePath, metadata: Mapping[str, Any]) -> str | None:
  """Returns how a checkpoint differs from what its place says, in a few words; None if it does not.

  Args:
    folder: folder of the checkpoint. If it lies in a workdir, its name is a step.
    metadata: metadata of the checkpoint.
  """
  if folder.parent.name != CHECKPOINTS_FOLDER:
    return None
  step, own_step = step_of(folder.name), metadata.get(STEP_KEY)
  if step is not None and (type(own_step) is not int or own_step != step):
    return f"by its content it is the checkpoint of step {quoted(own_step)}"
  run, own_run = read_run(folder.parent.parent), metadata.get(RUN_KEY)
  if None not in (run, own_run) and run != own_run:
    return f"it belongs to run {quoted(own_run)}, the workdir to run {quoted(run)} ({RUN_FILE})"
  return None


def read_run(workdir: pathlib.PurePath) -> str | None:
  """Returns the name of the run that a workdir belongs to; None if `run.json` does not tell."""
  try:
    run = read_json_object(workdir / RUN_FILE, _RUN_FILE_BYTES_MAX).get(RUN_KEY)
  except (OSError, ValueError):
    return None
  return run if isinstance(run, str) else None


def write_run(workdir: pathlib.PurePath, run: str) -> None:
  """Writes `run.json`; a reader sees the previous file or the whole new one."""
  write_durably(workdir / RUN_FILE, json.dumps({RUN_KEY: run}) + "\n")
