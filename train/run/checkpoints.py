"""Saving and restoring a training run. The only module that drives Orbax's CheckpointManager.

Saves are asynchronous and atomic: a folder `checkpoints/STEP` is either whole or absent. The layout
and the item names are in `nfnet.weights.checkpoint_reader`.
"""

import contextlib
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from nfnet.block_arrangement import BLOCKS, arrange_blocks
from nfnet.errors import UserError
from nfnet.weights.checkpoint_digests import find_damage, write_digests
from nfnet.weights.checkpoint_reader import (
  CHECKPOINTS_FOLDER,
  DATA_ITEM,
  EMA_ITEM,
  EXPERIMENT_ITEM,
  ITEMS,
  OPTIMIZER_ITEM,
  PARAMS_ITEM,
  block_keys,
  read_metadata,
  short_text,
)
from nfnet.weights.finished_reads import finished_reads
from train.config.experiment import CHANGEABLE_ON_RESUME, Experiment
from train.config.fields import field_values
from train.config.json_conversion import from_json
from train.config.overrides import as_argument

_DAMAGED_FOLDER = "checkpoints_damaged"


class Restored(NamedTuple):
  """One checkpoint.

  Attributes:
    step: steps that were done when it was saved.
    params: tree as given to `restore`.
    ema: tree as given to `restore`, or None.
    optimizer: tree as given to `restore`.
    data_state: JSON state of the data iterator.
    metadata: JSON that was saved beside the arrays, with "step" added.
    set_aside: steps of newer checkpoints that were damaged; known to the first process.
  """

  step: int
  params: Any
  ema: Any
  optimizer: Any
  data_state: dict[str, Any]
  metadata: dict[str, Any]
  set_aside: tuple[int, ...] = ()


class Checkpoints:
  """The checkpoints of one workdir. Use as a context manager, or call `close`.

  Keeps the newest ones, and besides them the one with the highest `best_metric` so far.
  """

  def __init__(self, workdir: str, *, keep: int, best_metric: str = "evaluation_top1"):
    """Opens `workdir`, creates it if needed, removes what an interrupted save left behind.

    Args:
      workdir: folder of the run; shared by all processes.
      keep: newest checkpoints kept.
      best_metric: the name in `save`'s metrics that the best checkpoint has the highest of.

    Raises:
      UserError: `workdir` cannot be written.
    """
    self._workdir = workdir
    self._folder = pathlib.Path(workdir).absolute() / CHECKPOINTS_FOLDER

    def quality(metrics: Mapping[str, float]) -> float:
      value = metrics.get(best_metric, -math.inf)
      return -math.inf if math.isnan(value) else value

    try:
      self._manager = ocp.CheckpointManager(
        self._folder,
        item_names=ITEMS,
        options=ocp.CheckpointManagerOptions(
          best_fn=quality,
          preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [
              checkpoint_managers.LatestN(keep),
              checkpoint_managers.BestN(get_metric_fn=quality, n=1),
            ]
          ),
          cleanup_tmp_directories=True,
          async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        ),
      )
    except OSError as error:
      raise UserError(
        f"workdir {workdir!r} cannot be written: {error.strerror}; give another --workdir"
      ) from error
    # Orbax waits for this at the first save only: a run that ends before that would print the
    # traceback of a thread which finds the interpreter gone.
    self._manager._maybe_await_cleanup_tmp_directory()
    absl_logging.get_absl_logger().addFilter(_drop_orbax_traceback)

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """Steps of all checkpoints, in order."""
    return sorted(self._manager.all_steps())

  def delete_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps, once the save under way is on disk."""
    self.wait()
    for later in self.all_steps():
      if later > step:
        self._manager.delete(later)

  def best_step(self) -> int | None:
    """Step of the checkpoint with the highest `best_metric`; None if there is none."""
    return self._manager.best_step()

  def save(
    self,
    step: int,
    *,
    params: Any,
    ema: Any | None,
    optimizer: Any,
    data_state: Mapping[str, Any],
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to save and returns once the arrays are copied to the host.

    Waits for a save that is still under way, and raises what went wrong with it.

    Args:
      step: steps done; greater than that of any checkpoint there is.
      params: tree of arrays.
      ema: tree of arrays, or None.
      optimizer: tree of arrays.
      data_state: JSON state of the data iterator.
      metadata: JSON about the experiment; "step" is added.
      metrics: of the evaluation at this step, if there was one.

    Raises:
      UserError: the disk is full or cannot be written; earlier checkpoints are intact.
      ValueError: there is a checkpoint of this or a later step.
    """
    items = {
      PARAMS_ITEM: ocp.args.StandardSave(params),
      OPTIMIZER_ITEM: ocp.args.StandardSave(optimizer),
      DATA_ITEM: ocp.args.JsonSave(dict(data_state)),
      EXPERIMENT_ITEM: ocp.args.JsonSave({**metadata, "step": step}),
    }
    if ema is not None:
      items[EMA_ITEM] = ocp.args.StandardSave(ema)
    with self._explained_failures():
      self._manager.wait_until_finished()
      self._saving = step
      # Orbax warns at each save without metrics; no metrics of many is not none.
      started = self._manager.save(
        step, args=ocp.args.Composite(**items), metrics=dict(metrics or {})
      )
    if not started:
      raise ValueError(f"{step=} must be later than the newest checkpoint {self.latest_step()}")

  def restore(
    self,
    *,
    params: Any,
    ema: Any | None,
    optimizer: Any,
    experiment: Experiment | None = None,
    step: int | None = None,
  ) -> Restored:
    """Restores a checkpoint onto the devices that the given trees name.

    Without `step`, newest checkpoints whose files are not those that were saved are moved to
    `checkpoints_damaged` with a logged warning, and the one before them is taken. They have to
    move: Orbax would otherwise skip all saves up to their steps. Of several processes, the first
    decides.

    Args:
      params: tree of jax.ShapeDtypeStruct with sharding.
      ema: the same, or None to restore none.
      optimizer: the same.
      experiment: refuse a checkpoint that this one must not continue.
      step: None takes the newest.

    Raises:
      UserError: there is no such checkpoint, none can be read, or `experiment` does not fit.
    """
    steps = self.all_steps()[::-1]
    if step is not None:
      steps = [existing for existing in steps if existing == step]
    if not steps:
      raise UserError(
        f"workdir {self._workdir!r} holds no checkpoint"
        + ("" if step is None else f" of step {step}")
      )
    damages: dict[int, str] = {}
    chosen = -1
    if jax.process_index() == 0:
      for candidate in steps:
        damage = find_damage(self._folder / str(candidate))
        if damage is None:
          chosen = candidate
          break
        damages[candidate] = damage
      if chosen >= 0:
        self._set_aside(damages)
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
      reason = damages.get(steps[0], "process 0 says why")
      raise UserError(
        f"checkpoint {self._folder / str(steps[0])} cannot be restored: {reason}"
        + (f", and so with all {len(steps)} of this workdir" if len(steps) > 1 else "")
        + "; start in a new --workdir"
      )
    self._manager.reload()
    try:
      restored = self._restore_step(chosen, params, ema, optimizer, experiment)
    except UserError:
      raise
    # What does not fit shows as whatever Orbax or TensorStore stumbled over.
    except Exception as error:
      raise UserError(
        f"checkpoint {self._folder / str(chosen)} cannot be restored ({short_text(error)}); "
        "its files are as they were saved, so it is of another network or version: start in a new "
        "--workdir"
      ) from error
    return restored._replace(set_aside=tuple(damages))

  def wait(self) -> None:
    """Blocks until the save under way is on disk.

    Raises:
      UserError: the disk is full or cannot be written; earlier checkpoints are intact.
    """
    with self._explained_failures():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes the save under way and releases threads; raises as `wait` does."""
    try:
      with self._explained_failures():
        self._manager.close()
    finally:
      absl_logging.get_absl_logger().removeFilter(_drop_orbax_traceback)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _write_digests(self) -> None:
    """Called by Orbax when all files of a checkpoint are written, before the folder is renamed."""
    if jax.process_index() == 0:
      (folder,) = self._folder.glob(f"{self._saving}.*")
      write_digests(folder)

  def _restore_step(
    self, step: int, params: Any, ema: Any, optimizer: Any, experiment: Experiment | None
  ) -> Restored:
    metadata = read_metadata(self._folder / str(step))
    if experiment is not None:
      check_resumable(metadata, experiment)
    trees = {PARAMS_ITEM: params, OPTIMIZER_ITEM: optimizer}
    if ema is not None:
      trees[EMA_ITEM] = ema
    with finished_reads():
      # A run that goes on with another `model.block_execution` finds blocks arranged otherwise.
      saved_keys = block_keys(self._folder / str(step))
      arguments = {
        item: ocp.args.StandardRestore(arrange_blocks(tree, saved_keys))
        for item, tree in trees.items()
      }
      restored = self._manager.restore(
        step, args=ocp.args.Composite(**arguments, **{DATA_ITEM: ocp.args.JsonRestore()})
      )
    arranged = {item: arrange_blocks(restored[item], params.get(BLOCKS)) for item in trees}
    return Restored(
      step=step,
      params=arranged[PARAMS_ITEM],
      ema=arranged.get(EMA_ITEM),
      optimizer=arranged[OPTIMIZER_ITEM],
      data_state=restored[DATA_ITEM],
      metadata=metadata,
    )

  def _set_aside(self, damages: Mapping[int, str]) -> None:
    for step, damage in damages.items():
      place = self._folder.parent / _DAMAGED_FOLDER
      place.mkdir(exist_ok=True)
      name, count = str(step), 0
      while (place / name).exists():
        count += 1
        name = f"{step}.{count}"
      (self._folder / str(step)).rename(place / name)
      absl_logging.warning(
        "checkpoint of step %d is damaged (%s); moved to %s, taking the one before it",
        step,
        damage,
        place / name,
      )

  @contextlib.contextmanager
  def _explained_failures(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      # Orbax forgets the steps that the failed save would have replaced.
      self._manager.reload()
      number = _os_error_number(error)
      if number is None:
        raise
      raise UserError(
        f"workdir {self._workdir!r}: the checkpoint could not be saved: {os.strerror(number)}; "
        f"the newest whole one is of step {self.latest_step()}; "
        "make room and run the same command again to resume"
      ) from error


def check_resumable(saved_metadata: Mapping[str, Any], experiment: Experiment) -> None:
  """Refuses to continue a run as another experiment.

  Args:
    saved_metadata: of a checkpoint; its "experiment" is what `to_json` gave.
    experiment: what the user asks for now.

  Raises:
    UserError: names each changed field outside `CHANGEABLE_ON_RESUME`, both values and the way out.
  """
  saved = field_values(from_json(saved_metadata["experiment"]))
  asked = field_values(experiment)
  changed = [
    field for field in asked if field not in CHANGEABLE_ON_RESUME and asked[field] != saved[field]
  ]
  if changed:
    differences = "; ".join(
      f"{field} was {saved[field]!r} and is now {asked[field]!r}" for field in changed
    )
    back = " ".join(as_argument(field, saved[field]) for field in changed)
    raise UserError(
      f"the workdir holds another experiment: {differences}. "
      f"Resume it with {back}, or start in a new --workdir"
    )


def _os_error_number(error: BaseException | None) -> int | None:
  # TensorStore gives a ValueError with the number in its text.
  while error is not None:
    if isinstance(error, OSError) and error.errno is not None:
      return error.errno
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
      return int(found[1])
    error = error.__cause__ or error.__context__
  return None


def _drop_orbax_traceback(record: logging.LogRecord) -> bool:
  # Orbax logs the traceback of a failed save in its threads and raises the same error to us.
  return not (record.exc_info and f"orbax{os.sep}checkpoint" in record.pathname)
