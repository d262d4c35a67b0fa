"""Saves and restores the checkpoints of a run. No other module drives Orbax's CheckpointManager.

Saves are asynchronous and atomic: a folder `checkpoints/STEP` is either whole or absent. The layout
and the item names are in `nfnet.weights.checkpoint_reader`.
"""

import contextlib
import math
import os
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from nfnet.block_arrangement import BLOCKS, arrange_blocks
from nfnet.errors import UserError, short_text
from nfnet.system.paths import as_path, is_in_bucket
from nfnet.weights.checkpoint_digests import write_digests
from nfnet.weights.checkpoint_identity import (
  CHECKPOINTS_FOLDER,
  RUN_KEY,
  STEP_KEY,
  read_run,
  write_run,
)
from nfnet.weights.checkpoint_reader import (
  DATA_ITEM,
  EMA_ITEM,
  EXPERIMENT_ITEM,
  ITEMS,
  OPTIMIZER_ITEM,
  PARAMS_ITEM,
  block_keys,
  read_metadata,
)
from nfnet.weights.finished_transfers import finished_transfers
from train.config.experiment import Experiment
from train.run.checkpoints.damage import choose, newest_metadata, set_aside
from train.run.checkpoints.orbax_quirks import (
  Manager,
  StepFolders,
  finish_threads,
  os_error_number,
  quiet_failures,
  remove_unfinished_saves,
  unfinished_save,
)
from train.run.checkpoints.resumable import check_class_names, check_resumable
from train.run.leases.held import check_lease
from train.run.processes import is_first, same_in_all_processes
from train.run.records.workdir import writing_to

BEST_METRIC = "evaluation_top1"
"""Name of the metric by which the best checkpoint is chosen."""


class Restored(NamedTuple):
  """The contents of one restored checkpoint.

  Attributes:
    step: number of steps that were done when it was saved.
    parameters: tree of arrays as given to `restore`.
    ema: tree of arrays as given to `restore`, or None.
    optimizer: tree of arrays as given to `restore`.
    data_state: JSON state of the data iterator.
    metadata: JSON that was saved beside the arrays, with "step" and "run" added.
    set_aside: steps of checkpoints that were damaged or out of place; only the first process knows
      them.
  """

  step: int
  parameters: Any
  ema: Any
  optimizer: Any
  data_state: dict[str, Any]
  metadata: dict[str, Any]
  set_aside: tuple[int, ...] = ()


class Checkpoints:
  """Saves and restores the checkpoints of one workdir. Use as a context manager, or call `close`.

  The newest checkpoints are kept, and the one with the highest `BEST_METRIC` so far.
  """

  def __init__(self, workdir: str, *, keep: int):
    """Opens `workdir`, creates it if needed, and removes what an interrupted save left behind.

    Args:
      workdir: folder of the run, here or in a bucket; shared by all processes.
      keep: number of newest checkpoints to keep.

    Raises:
      UserError: `workdir` cannot be written.
    """
    self._workdir = workdir
    self._folder = as_path(workdir).absolute() / CHECKPOINTS_FOLDER

    def quality(metrics: Mapping[str, float]) -> float:
      value = metrics.get(BEST_METRIC, -math.inf)
      return -math.inf if math.isnan(value) else value

    # The run's name; None until a checkpoint has been restored or saved.
    self._run: str | None = None
    try:
      if is_first():
        remove_unfinished_saves(self._folder)
      self._manager = Manager(
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
          step_name_format=StepFolders(),
          async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        ),
      )
      # It may be on another file system than the workdir, or somebody else's; the first save would
      # tell only after hours.
      if not is_in_bucket(workdir):
        with tempfile.TemporaryFile(dir=self._folder):
          pass
    except OSError as error:
      raise UserError(
        f"workdir {workdir!r} cannot be written: {error.strerror}; give another --workdir"
      ) from error
    self._quiet = contextlib.ExitStack()
    self._quiet.enter_context(quiet_failures())
    self._quiet.enter_context(finished_transfers())

  def run_name(self) -> str:
    """Returns the name of the run, which `run.json` repeats once there is a checkpoint.

    It is drawn when a run begins; with several processes, the first one does so.
    """
    if self._run is None and self.all_steps():
      self._run = read_run(self._folder.parent)
    self._run = self._run or uuid.uuid4().hex
    return self._run

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, or None if there is no checkpoint."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """Returns the steps of all checkpoints in ascending order."""
    return sorted(self._manager.all_steps())

  def check_experiment(
    self,
    experiment: Experiment,
    accepted_changes: Collection[str] = (),
    class_names: Sequence[str] | None = None,
  ) -> None:
    """Refuses another experiment than the newest checkpoint's, before anything large is read.

    Without a checkpoint, or in a process other than the first, it does nothing. `restore` checks
    again, in the checkpoint that it restores.

    Args:
      experiment: experiment that the checkpoint must belong to.
      accepted_changes: fields in which the experiment may differ, see `check_resumable`.
      class_names: names of the data set's classes, which must be those of the checkpoint; None
        accepts any.

    Raises:
      UserError: `experiment` does not fit.
    """
    metadata = newest_metadata(self._folder, self.all_steps()) if is_first() else None
    # One that does not name its run may be another's, which `restore` sets aside.
    if metadata is not None and metadata.get(RUN_KEY) is not None:
      _check_fits(metadata, experiment, accepted_changes, class_names)

  def delete_after(self, step: int) -> None:
    """Deletes the checkpoints of steps after `step`, once the save under way is on disk."""
    self.wait()
    for later in self.all_steps():
      if later > step:
        self._manager.delete(later)

  def save(
    self,
    step: int,
    *,
    parameters: Any,
    ema: Any | None,
    optimizer: Any,
    data_state: Mapping[str, Any],
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to save a checkpoint and returns once the arrays are copied to the host.

    First waits for a save that is still under way, and raises the error that it ended with.

    Args:
      step: number of steps done; must be later than the newest checkpoint's.
      parameters: tree of arrays.
      ema: tree of arrays, or None.
      optimizer: tree of arrays.
      data_state: JSON state of the data iterator.
      metadata: JSON about the experiment; "step" and "run" are added.
      metrics: results of the evaluation at this step, if there was one.

    Raises:
      UserError: the disk is full or cannot be written; earlier checkpoints are intact.
      ValueError: there is a checkpoint of this or a later step.
    """
    # Orbax would create a workdir that is gone.
    with writing_to(self._workdir):
      pass
    identity = {STEP_KEY: step, RUN_KEY: self._name_run()}
    items = {
      PARAMS_ITEM: ocp.args.StandardSave(parameters),
      OPTIMIZER_ITEM: ocp.args.StandardSave(optimizer),
      DATA_ITEM: ocp.args.JsonSave(dict(data_state)),
      EXPERIMENT_ITEM: ocp.args.JsonSave({**metadata, **identity}),
    }
    if ema is not None:
      items[EMA_ITEM] = ocp.args.StandardSave(ema)
    with self._explained_failures():
      self._manager.wait_until_finished()
      self._saving = step
      # Orbax warns at each save whose metrics are None, but not if they are an empty dictionary.
      started = self._manager.save(
        step, args=ocp.args.Composite(**items), metrics=dict(metrics or {})
      )
    if not started:
      raise ValueError(f"{step=} must be later than the newest checkpoint {self.latest_step()}")

  def restore(
    self,
    *,
    parameters: Any,
    ema: Any | None,
    optimizer: Any,
    experiment: Experiment | None = None,
    accepted_changes: Collection[str] = (),
    class_names: Sequence[str] | None = None,
  ) -> Restored:
    """Restores the newest checkpoint that can be used, onto the devices that the trees name.

    `train.run.checkpoints.damage` says which one that is. Newer ones are moved to
    `checkpoints_damaged` with a logged warning. They have to move, because Orbax would otherwise
    skip all saves up to their steps. With several processes, the first one decides.

    Args:
      parameters: tree of jax.ShapeDtypeStruct with sharding.
      ema: tree of jax.ShapeDtypeStruct with sharding, or None to restore no moving average.
      optimizer: tree of jax.ShapeDtypeStruct with sharding.
      experiment: experiment that the checkpoint must belong to; None accepts any.
      accepted_changes: fields in which the experiment may differ, see `check_resumable`.
      class_names: names of the data set's classes, which must be those of the checkpoint; None
        accepts any.

    Raises:
      UserError: there is no checkpoint, none can be read, or `experiment` does not fit.
    """
    steps = self.all_steps()
    if not steps:
      raise UserError(f"workdir {self._workdir!r} holds no checkpoint")
    chosen, faults = None, {}
    if is_first():

      def accept(metadata: Mapping[str, Any]) -> None:
        if experiment is not None:
          _check_fits(metadata, experiment, accepted_changes, class_names)

      chosen, run, faults = choose(self._folder, steps, accept)
      if chosen is not None:
        self._run = read_run(self._folder.parent) or run
        set_aside(self._workdir, self._folder, faults)
    # Steps begin with 1.
    chosen = same_in_all_processes(chosen or 0)
    if not chosen:
      reason = faults.get(steps[-1], "the output of process 0 says why")
      raise UserError(
        f"checkpoint {self._folder / str(steps[-1])} cannot be restored: {reason}"
        + (f"; none of its {len(steps)} checkpoints can" if len(steps) > 1 else "")
        + "; repair it, or move the workdir away to start anew"
      )
    self._manager.reload()
    try:
      restored = self._restore_step(chosen, parameters, ema, optimizer)
    # If a tree does not fit, Orbax or TensorStore may raise anything.
    except Exception as error:
      raise UserError(
        f"checkpoint {self._folder / str(chosen)} cannot be restored ({short_text(error)}); "
        "its files are intact, so it is of another network or version: "
        "move the workdir away to start anew"
      ) from error
    return restored._replace(set_aside=tuple(faults))

  def wait(self) -> None:
    """Blocks until the save under way is on disk.

    Raises:
      UserError: the disk is full or cannot be written; earlier checkpoints are intact.
    """
    with self._explained_failures():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes the save under way and releases threads.

    Raises:
      UserError: the disk is full or cannot be written; earlier checkpoints are intact.
    """
    try:
      with self._explained_failures():
        self._manager.close()
    finally:
      finish_threads()
      self._quiet.close()
      # A run that is refused at its start leaves nothing behind.
      with contextlib.suppress(OSError, UserError):
        check_lease(self._workdir)
        if is_first():
          self._folder.rmdir()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _name_run(self) -> str:
    """Returns the name of the run, after writing it to `run.json` if another one is there."""
    # Only the first process writes metadata.
    if not is_first():
      return ""
    name = self.run_name()
    if read_run(self._folder.parent) != name:
      with writing_to(self._workdir):
        write_run(self._folder.parent, name)
    return name

  def _write_digests(self) -> None:
    """Writes the digests; Orbax calls this after writing all files, before it renames them."""
    check_lease(self._workdir)
    if is_first():
      write_digests(unfinished_save(self._folder, self._saving))

  def _restore_step(self, step: int, parameters: Any, ema: Any, optimizer: Any) -> Restored:
    metadata = read_metadata(self._folder / str(step))
    trees = {PARAMS_ITEM: parameters, OPTIMIZER_ITEM: optimizer}
    if ema is not None:
      trees[EMA_ITEM] = ema
    # A run that resumes with another `model.block_execution` finds its blocks arranged
    # differently.
    saved_keys = block_keys(self._folder / str(step))
    arguments = {
      item: ocp.args.StandardRestore(arrange_blocks(tree, saved_keys))
      for item, tree in trees.items()
    }
    restored = self._manager.restore(
      step, args=ocp.args.Composite(**arguments, **{DATA_ITEM: ocp.args.JsonRestore()})
    )
    arranged = {item: arrange_blocks(restored[item], parameters.get(BLOCKS)) for item in trees}
    return Restored(
      step=step,
      parameters=arranged[PARAMS_ITEM],
      ema=arranged.get(EMA_ITEM),
      optimizer=arranged[OPTIMIZER_ITEM],
      data_state=restored[DATA_ITEM],
      metadata=metadata,
    )

  @contextlib.contextmanager
  def _explained_failures(self) -> Iterator[None]:
    """Turns errors of the file system into a `UserError`."""
    try:
      yield
    except Exception as error:
      # That of a bucket cannot be read if the bucket cannot be reached.
      with contextlib.suppress(OSError):
        check_lease(self._workdir)
      # Orbax has forgotten the steps that the failed save would have replaced; they are on disk.
      self._manager.reload()
      number = os_error_number(error)
      if number is None:
        raise
      raise UserError(
        f"workdir {self._workdir!r}: the checkpoint could not be saved: {os.strerror(number)}; "
        f"the newest complete one is of step {self.latest_step()}; "
        "make room and run the same command again to resume"
      ) from error


def _check_fits(
  metadata: Mapping[str, Any],
  experiment: Experiment,
  accepted_changes: Collection[str],
  class_names: Sequence[str] | None,
) -> None:
  """Raises UserError if metadata are of another experiment."""
  check_resumable(metadata, experiment, accepted_changes)
  check_class_names(metadata, class_names, experiment.data.path)
