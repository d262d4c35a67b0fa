"""Reads training checkpoints without knowing the network in them, and defines their layout.

A workdir holds `checkpoints/STEP/ITEM`. Items are separate so that a reader reads only what it
needs: parameters are a third of a checkpoint that also holds momentum and the moving average.
`train.run.checkpoints` writes this layout with Orbax.
"""

import contextlib
import math
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nfnet.block_arrangement import BLOCKS, arrange_blocks
from nfnet.errors import UserError, short_text
from nfnet.foreign_files.json_text import check_structure, read_json
from nfnet.system.paths import as_path
from nfnet.variants import PIXELS_MAX
from nfnet.weights.checkpoint_digests import DIGESTS_FILE, find_damage
from nfnet.weights.checkpoint_identity import (
  CHECKPOINTS_FOLDER,
  RUN_FILE,
  RUN_KEY,
  STEP_KEY,
  checkpoint_steps,
  find_mix_up,
)
from nfnet.weights.finished_transfers import finished_transfers

Folder = Any
"""A folder, here or in a bucket: what `nfnet.system.paths.as_path` returns."""

PARAMS_ITEM = "params"
EMA_ITEM = "ema"
OPTIMIZER_ITEM = "optimizer"
DATA_ITEM = "data"
EXPERIMENT_ITEM = "experiment"
ITEMS = (PARAMS_ITEM, EMA_ITEM, OPTIMIZER_ITEM, DATA_ITEM, EXPERIMENT_ITEM)

_METADATA_STRUCTURE = {
  f"{STEP_KEY}?": int,
  f"{RUN_KEY}?": str,
  "class_names?": [str],
  "experiment?": {
    "model?": {"variant?": str, "activation?": str, "bottleneck?": str, "numerics?": str},
    "data?": {
      "evaluation_pixels?": range(1, PIXELS_MAX + 1),
      "evaluation_resize?": str,
      "evaluation_resize_margin?": range(PIXELS_MAX + 1),
    },
    "loss?": {"kind?": str},
  },
  "counts?": {str: int},
  "left_out?": [[int]],
  "owes_evaluation?": bool,
}
"""Gives the types that metadata must have where present; the experiment is validated in use."""
_ORBAX_METADATA = "_METADATA"
_COMPRESSION_MAX = 64
_SMALL_BYTES = 64 * 2**20
"""Arrays of up to this size may be stored in files of any size: those of zeros are."""
_DEPTH_MAX = 16


class NewerVersionError(UserError):
  """The error for a checkpoint that is intact, but whose metadata this version does not know."""

  def __init__(self, folder: Folder, difference: str):
    """Writes the message.

    Args:
      folder: folder of the checkpoint.
      difference: what this version does not know.
    """
    super().__init__(
      f"checkpoint {folder} was saved by a newer version, whose metadata this one does not know "
      f"({difference}); use the version that saved it"
    )


def read_checkpoint(path: str, *, prefer_ema: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the parameters of a trained network.

  Any number of devices may have written them; they are read into host memory.

  Args:
    path: a workdir, whose newest checkpoint is read, or the folder of one checkpoint; of one in a
      bucket, what is needed is copied first.
    prefer_ema: whether to read the moving average of the parameters where one was saved.

  Returns:
    Parameters as nested dictionaries of NumPy arrays, each block under its number, and the metadata
    that was saved with them.

  Raises:
    UserError: there is no checkpoint, it cannot be read, or it is not the one that its place says.
  """
  folder = checkpoint_folder(path)
  item = EMA_ITEM if prefer_ema and (folder / EMA_ITEM).is_dir() else PARAMS_ITEM
  items = (item, EXPERIMENT_ITEM)
  # A moving average that a copy has lost must not be replaced by the parameters.
  verified = {*items, EMA_ITEM} if prefer_ema else set(items)
  with _here(folder, verified) as place:
    if damage := find_damage(place, verified, needed=items):
      raise UserError(f"checkpoint {folder} cannot be read: {damage}; name another step's folder")
    metadata = read_metadata(place)
    if mix_up := find_mix_up(place, metadata):
      raise UserError(
        f"checkpoint {folder} is not what its place says: {mix_up}; "
        "put it back where it belongs, or name another step's folder"
      )
    # On damaged files Orbax and TensorStore raise errors of many types.
    try:
      with finished_transfers():
        parameters = arrange_blocks(read_arrays(place / item))
    except UserError:
      raise
    except Exception as error:
      raise UserError(
        f"checkpoint {folder} cannot be read, it may be damaged ({short_text(error)}); "
        "name another step's folder"
      ) from error
  return parameters, metadata


@contextlib.contextmanager
def _here(folder: Folder, items: Collection[str]) -> Iterator[pathlib.Path]:
  """Yields a checkpoint's folder, or one with a copy of some of its items if it is in a bucket."""
  if isinstance(folder, pathlib.Path):
    yield folder
    return
  # Importing it takes a while, and few need it.
  from nfnet.buckets.temporary_copies import temporary_copies

  try:
    names = [name for name in folder.names() if name.partition("/")[0] in {*items, DIGESTS_FILE}]
    workdir = folder.parent.parent
    if folder.parent.name == CHECKPOINTS_FOLDER:
      # So that the copy has the same place in a workdir.
      names = [f"{CHECKPOINTS_FOLDER}/{folder.name}/{name}" for name in names]
      names += [RUN_FILE] if (workdir / RUN_FILE).is_file() else []
    else:
      workdir = folder
  except OSError as error:
    raise UserError(f"checkpoint {folder} cannot be read: {error.strerror}") from error
  with temporary_copies(workdir, names) as copy:
    yield copy / folder.relative_to(workdir)


def block_keys(folder: Folder) -> tuple[str, ...] | None:
  """Returns the keys by which a checkpoint's blocks are arranged (`nfnet.block_arrangement`).

  Args:
    folder: folder of one checkpoint.

  Returns:
    Keys of the blocks; None if the parameters have no blocks.
  """
  tree = ocp.PyTreeCheckpointHandler().metadata(folder / PARAMS_ITEM).tree
  return tuple(tree[BLOCKS]) if BLOCKS in tree else None


def read_metadata(folder: Folder) -> dict[str, Any]:
  """Reads the metadata about the experiment from one checkpoint's folder.

  Raises:
    NewerVersionError: the file has another structure than this version writes. Callers have
      compared it with its digest, so it has been written like this.
    UserError: the file cannot be read, or is not JSON.
  """
  # This is the name that Orbax gives to the file of a JSON item.
  metadata = read_json(folder / EXPERIMENT_ITEM / "metadata", {str: Any})
  try:
    check_structure(metadata, _METADATA_STRUCTURE)
  except ValueError as error:
    raise NewerVersionError(folder, short_text(error)) from error
  return metadata


def checkpoint_folder(path: str) -> Folder:
  """Returns the folder of one checkpoint: `path` itself, or the newest one in the workdir `path`.

  Raises:
    UserError: there is no checkpoint.
  """
  folder = as_path(path).absolute()
  try:
    if (folder / PARAMS_ITEM).is_dir():
      return folder
    if not folder.is_dir():
      raise UserError(f"checkpoint {path!r}: there is no such folder")
  except OSError as error:
    raise UserError(f"checkpoint {path!r} cannot be read: {error.strerror}") from error
  step = newest_step(folder)
  if step is None:
    raise UserError(
      f"{path!r} holds no checkpoint: expected a workdir with "
      f"{CHECKPOINTS_FOLDER}/STEP/{PARAMS_ITEM}, or such a STEP folder"
    )
  return folder / CHECKPOINTS_FOLDER / str(step)


def newest_step(workdir: Folder) -> int | None:
  """Returns the step of the newest checkpoint in a workdir; None if there is none.

  Raises:
    UserError: the folder of the checkpoints cannot be listed.
  """
  folder = workdir / CHECKPOINTS_FOLDER
  steps = (step for step in checkpoint_steps(folder) if (folder / str(step)).is_dir())
  return max(steps, default=None)


def read_arrays(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the NumPy arrays in one item's folder, in the arrangement in which they were saved.

  Raises:
    Exception: of many types: the files are damaged, or claim arrays that they cannot hold.
  """
  read_json(folder / _ORBAX_METADATA, {"tree_metadata": {str: {"key_metadata": list}}})
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(folder).tree
  _check_size(tree, folder)
  # Without this, Orbax would put the arrays on the devices named in the checkpoint.
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _check_size(tree: Any, folder: pathlib.Path) -> None:
  """Raises ValueError if the arrays, before they are read, are far larger than the files."""
  level, depth = [tree], 0
  arrays_bytes = 0
  # Not recursive, because the file says how deep it is.
  while level := [inner for one in level if isinstance(one, dict) for inner in one.values()]:
    depth += 1
    if depth > _DEPTH_MAX:
      raise ValueError(f"its arrays are nested more than {_DEPTH_MAX} deep")
    arrays_bytes += sum(
      math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in level if hasattr(one, "shape")
    )
  files_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  if arrays_bytes > max(_SMALL_BYTES, _COMPRESSION_MAX * files_bytes):
    raise ValueError(f"arrays of {arrays_bytes} bytes in files of {files_bytes} bytes")
