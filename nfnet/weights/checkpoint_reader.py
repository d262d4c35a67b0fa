"""The layout of a training checkpoint, and reading one without knowing the network in it.

A workdir holds `checkpoints/STEP/ITEM`. Items are separate so that a reader takes what it needs:
the parameters are a third of a run that also saves momentum and moving average.
`train.run.checkpoints.manager` writes this layout with Orbax.
"""

import pathlib
import textwrap
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nfnet.block_arrangement import BLOCKS, arrange_blocks
from nfnet.errors import UserError
from nfnet.weights.checkpoint_digests import find_damage
from nfnet.weights.finished_reads import finished_reads

CHECKPOINTS_FOLDER = "checkpoints"
PARAMS_ITEM = "params"
EMA_ITEM = "ema"
OPTIMIZER_ITEM = "optimizer"
DATA_ITEM = "data"
EXPERIMENT_ITEM = "experiment"
ITEMS = (PARAMS_ITEM, EMA_ITEM, OPTIMIZER_ITEM, DATA_ITEM, EXPERIMENT_ITEM)


def read_checkpoint(path: str, *, prefer_ema: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the parameters of a trained network.

  Any number of devices may have written them; nothing is put on a device here.

  Args:
    path: a workdir, of which the newest checkpoint is taken, or one checkpoint's folder.
    prefer_ema: take the moving average of the parameters where one was kept.

  Returns:
    The parameters as nested dict of numpy arrays, each block under its number, and the metadata
    that was saved beside them.

  Raises:
    UserError: there is no checkpoint, or it cannot be read.
  """
  folder = checkpoint_folder(path)
  item = EMA_ITEM if prefer_ema and (folder / EMA_ITEM).is_dir() else PARAMS_ITEM
  if damage := find_damage(folder, (item, EXPERIMENT_ITEM)):
    raise UserError(f"checkpoint {folder} cannot be read: {damage}; name another step's folder")
  # Damage shows as whatever Orbax, TensorStore or the JSON parser stumbled over.
  try:
    with finished_reads():
      params = read_arrays(folder / item)
    metadata = read_metadata(folder)
  except Exception as error:
    raise UserError(
      f"checkpoint {folder} cannot be read, it may be damaged ({short_text(error)}); "
      "name another step's folder"
    ) from error
  return arrange_blocks(params), metadata


def block_keys(folder: pathlib.Path) -> tuple[str, ...] | None:
  """How the blocks of one checkpoint's folder are arranged; None if its parameters have none."""
  tree = ocp.PyTreeCheckpointHandler().metadata(folder / PARAMS_ITEM).tree
  return tuple(tree[BLOCKS]) if BLOCKS in tree else None


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
  """What was saved about the experiment in one checkpoint's folder."""
  return dict(ocp.JsonCheckpointHandler().restore(folder / EXPERIMENT_ITEM))


def checkpoint_folder(path: str) -> pathlib.Path:
  """The folder of one checkpoint: `path` itself, or the newest in the workdir `path`.

  Raises:
    UserError: there is none.
  """
  folder = pathlib.Path(path).absolute()
  if (folder / PARAMS_ITEM).is_dir():
    return folder
  if not folder.is_dir():
    raise UserError(f"checkpoint {path!r}: there is no such folder")
  steps = ocp.utils.checkpoint_steps(folder / CHECKPOINTS_FOLDER)
  if not steps:
    raise UserError(
      f"{path!r} holds no checkpoint: expected a workdir with "
      f"{CHECKPOINTS_FOLDER}/STEP/{PARAMS_ITEM}, or such a STEP folder"
    )
  return folder / CHECKPOINTS_FOLDER / str(max(steps))


def read_arrays(folder: pathlib.Path) -> dict[str, Any]:
  """The tree of numpy arrays in one item's folder, as the run that saved it arranged its blocks."""
  handler = ocp.PyTreeCheckpointHandler()
  # Without this the arrays would go to the devices named in the checkpoint.
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree
  )
  return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def short_text(error: BaseException) -> str:
  """Type and beginning of an error whose text may be pages long."""
  return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
