"""Chooses the checkpoint to resume from, and sets aside those that cannot be used.

A checkpoint is used if its files agree with their digests (`nfnet.weights.checkpoint_digests`), if
it is the one that its place says (`nfnet.weights.checkpoint_identity`), and if it is of the
experiment that is trained. One that a newer version has saved is neither used nor moved.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from absl import logging

from nfnet.errors import UserError
from nfnet.weights.checkpoint_digests import find_damage
from nfnet.weights.checkpoint_identity import RUN_FILE, RUN_KEY, find_mix_up
from nfnet.weights.checkpoint_reader import (
  DATA_ITEM,
  EXPERIMENT_ITEM,
  OPTIMIZER_ITEM,
  PARAMS_ITEM,
  NewerVersionError,
  read_metadata,
)
from train.run.records.workdir import move_aside, writing_to

DAMAGED_FOLDER = "checkpoints_damaged"
"""Folder beside the checkpoints into which unusable ones are moved."""


class Choice(NamedTuple):
  """The checkpoint to resume from.

  Attributes:
    step: its step; None if no checkpoint can be used.
    run: name of its run; None if it was written by a version that did not name runs.
    faults: what is wrong with each checkpoint that must not stay where it is.
  """

  step: int | None
  run: str | None
  faults: dict[int, str]


class _UnusableError(Exception):
  """Says what is wrong with a checkpoint."""


class _MisplacedError(_UnusableError):
  """Says why what lies in a checkpoint's place does not belong there."""


def choose(
  folder: pathlib.PurePath, steps: Sequence[int], accept: Callable[[dict[str, Any]], None]
) -> Choice:
  """Looks for the newest checkpoint that can be used.

  Args:
    folder: folder of the checkpoints.
    steps: steps of the checkpoints to consider.
    accept: function of a checkpoint's metadata that raises UserError if it is of another
      experiment.

  Raises:
    NewerVersionError: the newest one that is intact was saved by a newer version.
    UserError: the run, or every intact checkpoint that does not name its run, is of another
      experiment; or the checkpoints are of several runs.
  """
  faults: dict[int, str] = {}
  refusals: list[UserError] = []
  remaining = sorted(steps, reverse=True)
  while remaining:
    step = remaining.pop(0)
    place = folder / str(step)
    try:
      metadata = _look_at(place)
      accept(metadata)
      needed = (PARAMS_ITEM, OPTIMIZER_ITEM, DATA_ITEM, EXPERIMENT_ITEM)
      if damage := find_damage(place, needed=needed):
        raise _UnusableError(damage)
    except _UnusableError as error:
      faults[step] = str(error)
    except NewerVersionError:
      # Its steps must not be trained again, nor the version that knows it miss it.
      raise
    except UserError as error:
      if metadata.get(RUN_KEY) is not None:
        # It is this run's, so the experiment that is asked for is another one.
        raise
      refusals.append(error)
      faults[step] = "it is of another experiment"
    else:
      run = metadata.get(RUN_KEY)
      return Choice(step, run, faults | _misplaced(folder, remaining, step, run))
  if refusals:
    raise refusals[0]
  return Choice(None, None, faults)


def newest_metadata(folder: pathlib.PurePath, steps: Iterable[int]) -> dict[str, Any] | None:
  """Returns the newest metadata that are not damaged; None if there are none.

  Raises:
    NewerVersionError: a newer version saved them.
  """
  for step in sorted(steps, reverse=True):
    with contextlib.suppress(_UnusableError):
      return _look_at(folder / str(step))
  return None


def _look_at(place: pathlib.PurePath) -> dict[str, Any]:
  """Returns a checkpoint's metadata without reading its arrays.

  Raises:
    _UnusableError: the metadata is damaged or does not fit the place.
    NewerVersionError: the metadata has a structure that this version does not know.
  """
  try:
    is_folder = place.is_dir() and not place.is_symlink()
  except OSError:
    is_folder = False
  if not is_folder:
    raise _MisplacedError("it is not a folder")
  if damage := find_damage(place, (EXPERIMENT_ITEM,), needed=(EXPERIMENT_ITEM,)):
    raise _UnusableError(damage)
  try:
    metadata = read_metadata(place)
  except NewerVersionError:
    raise
  except UserError as error:
    raise _UnusableError(str(error)) from error
  if mix_up := find_mix_up(place, metadata):
    raise _MisplacedError(mix_up)
  if "experiment" not in metadata:
    raise NewerVersionError(place, "they name no experiment")
  return metadata


def _misplaced(
  folder: pathlib.PurePath, older: Sequence[int], step: int, run: str | None
) -> dict[int, str]:
  """Returns why some older checkpoints must not stay, of which only the place is looked at.

  What is in the way of a save must go, and what belongs elsewhere must not be deleted for its age.

  Raises:
    UserError: one of them is of another run, and it is unknown which of them belongs here.
  """
  faults = {}
  for old in older:
    try:
      old_run = _look_at(folder / str(old)).get(RUN_KEY)
    except _MisplacedError as error:
      faults[old] = str(error)
    except (_UnusableError, NewerVersionError):
      continue
    else:
      if None not in (run, old_run) and run != old_run:
        raise UserError(
          f"the checkpoints of steps {old} and {step} in {folder} are of different runs, and "
          f"{RUN_FILE} does not say which of them belongs here; remove those of the other run"
        )
  return faults


def set_aside(workdir: str, folder: pathlib.PurePath, faults: dict[int, str]) -> None:
  """Moves checkpoints into `DAMAGED_FOLDER`, with a logged warning for each.

  Args:
    workdir: folder of the run.
    folder: folder of the checkpoints.
    faults: description of what is wrong with each step's checkpoint.

  Raises:
    UserError: a checkpoint cannot be moved.
  """
  for step, fault in faults.items():
    with writing_to(workdir):
      place = move_aside(folder / str(step), folder.parent / DAMAGED_FOLDER)
    logging.warning(
      "checkpoint of step %d is damaged or out of place (%s); moved to %s", step, fault, place
    )
