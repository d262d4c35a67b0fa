"""Verifies checkpoints against their digests and sets damaged ones aside.

`nfnet.weights.checkpoint_digests` reads and writes the digests, the SHA-256 of every file of a
checkpoint.
"""

import pathlib
from collections.abc import Mapping, Sequence

from absl import logging

from nfnet.weights.checkpoint_digests import find_damage

DAMAGED_FOLDER = "checkpoints_damaged"
"""Folder beside the checkpoints into which damaged ones are moved."""


def newest_undamaged(
  folder: pathlib.Path, steps: Sequence[int]
) -> tuple[int | None, dict[int, str]]:
  """Looks for the newest checkpoint whose files agree with their digests.

  Args:
    folder: folder of the checkpoints.
    steps: steps of the checkpoints to consider.

  Returns:
    The step of that checkpoint, or None if all are damaged; and a description of what is wrong with
    each newer one.
  """
  damages: dict[int, str] = {}
  for step in sorted(steps, reverse=True):
    damage = find_damage(folder / str(step))
    if damage is None:
      return step, damages
    damages[step] = damage
  return None, damages


def set_aside(folder: pathlib.Path, damages: Mapping[int, str]) -> None:
  """Moves damaged checkpoints into `DAMAGED_FOLDER`, with a logged warning for each.

  Args:
    folder: folder of the checkpoints.
    damages: description of what is wrong with each step's checkpoint.
  """
  place = folder.parent / DAMAGED_FOLDER
  for step, damage in damages.items():
    place.mkdir(exist_ok=True)
    name, count = str(step), 0
    while (place / name).exists():
      count += 1
      name = f"{step}.{count}"
    (folder / str(step)).rename(place / name)
    logging.warning(
      "checkpoint of step %d is damaged (%s); moved to %s, taking the one before it",
      step,
      damage,
      place / name,
    )
