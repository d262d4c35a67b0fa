"""Reads training checkpoints without knowing the network in them, and defines their layout.

A workdir holds `checkpoints/STEP/ITEM`. Items are separate so that a reader reads only what it
needs: parameters are a third of a checkpoint that also holds momentum and the moving average.
`train.run.checkpoints` writes this layout with Orbax.
"""

import os
import pathlib
import textwrap
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nfnet.block_arrangement import BLOCKS, arrange_blocks
from nfnet.errors import UserError
from nfnet.weights.checkpoint_digests import find_damage
from nfnet.weights.checkpoint_identity import CHECKPOINTS_FOLDER, checkpoint_steps, find_mix_up
from nfnet.weights.finished_reads import finished_reads

PARAMS_ITEM = "params"
EMA_ITEM = "ema"
OPTIMIZER_ITEM = "optimizer"
DATA_ITEM = "data"
EXPERIMENT_ITEM = "experiment"
ITEMS = (PARAMS_ITEM, EMA_ITEM, OPTIMIZER_ITEM, DATA_ITEM, EXPERIMENT_ITEM)


def read_checkpoint(path: str, *, prefer_ema: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the parameters of a trained network.

  Any number of devices may have written them; they are read into host memory.

  Args:
    path: a workdir, whose newest checkpoint is read, or the folder of one checkpoint.
    prefer_ema: whether to read the moving average of the parameters where one was saved.

  Returns:
    Parameters as nested dictionaries of NumPy arrays, each block under its number, and the metadata
    that was saved with them.

  Raises:
    UserError: there is no checkpoint, it cannot be read, or it is not the one that its place says.
  """
  folder = checkpoint_folder(path)
  item = EMA_ITEM if prefer_ema and os.path.isdir(folder / EMA_ITEM) else PARAMS_ITEM
  items = (item, EXPERIMENT_ITEM)
  if damage := find_damage(folder, items, needed=items):
    raise UserError(f"checkpoint {folder} cannot be read: {damage}; name another step's folder")
  # On damaged files Orbax, TensorStore and the JSON parser raise errors of many types.
  try:
    metadata = read_metadata(folder)
    if mix_up := find_mix_up(folder, metadata):
      raise UserError(
        f"checkpoint {folder} is not what its place says: {mix_up}; "
        "put it back where it belongs, or name another step's folder"
      )
    with finished_reads():
      parameters = read_arrays(folder / item)
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f"checkpoint {folder} cannot be read, it may be damaged ({short_text(error)}); "
      "name another step's folder"
    ) from error
  return arrange_blocks(parameters), metadata


def block_keys(folder: pathlib.Path) -> tuple[str, ...] | None:
  """Returns the keys by which a checkpoint's blocks are arranged (`nfnet.block_arrangement`).

  Args:
    folder: folder of one checkpoint.

  Returns:
    Keys of the blocks; None if the parameters have no blocks.
  """
  tree = ocp.PyTreeCheckpointHandler().metadata(folder / PARAMS_ITEM).tree
  return tuple(tree[BLOCKS]) if BLOCKS in tree else None


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the metadata about the experiment from one checkpoint's folder."""
  return dict(ocp.JsonCheckpointHandler().restore(folder / EXPERIMENT_ITEM))


def checkpoint_folder(path: str) -> pathlib.Path:
  """Returns the folder of one checkpoint: `path` itself, or the newest one in the workdir `path`.

  Raises:
    UserError: there is no checkpoint.
  """
  folder = pathlib.Path(path).absolute()
  if os.path.isdir(folder / PARAMS_ITEM):
    return folder
  if not os.path.isdir(folder):
    raise UserError(f"checkpoint {path!r}: there is no such folder")
  step = newest_step(folder)
  if step is None:
    raise UserError(
      f"{path!r} holds no checkpoint: expected a workdir with "
      f"{CHECKPOINTS_FOLDER}/STEP/{PARAMS_ITEM}, or such a STEP folder"
    )
  return folder / CHECKPOINTS_FOLDER / str(step)


def newest_step(workdir: pathlib.Path) -> int | None:
  """Returns the step of the newest checkpoint in a workdir; None if there is none.

  Raises:
    UserError: the folder of the checkpoints cannot be listed.
  """
  folder = workdir / CHECKPOINTS_FOLDER
  steps = (step for step in checkpoint_steps(folder) if os.path.isdir(folder / str(step)))
  return max(steps, default=None)


def read_arrays(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the NumPy arrays in one item's folder, in the arrangement in which they were saved."""
  handler = ocp.PyTreeCheckpointHandler()
  # Without this, Orbax would put the arrays on the devices named in the checkpoint.
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree
  )
  return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def short_text(error: BaseException) -> str:
  """Returns the type and the beginning of an error, whose text may be pages long."""
  return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
