"""Proves from a run's record which images it has trained on, and how often.

    python -m train.audit_data --workdir=DIR

The run may be finished or interrupted, with any number of processes and restarts. There are two
proofs, which share no code with the input pipeline except, in the second, the shuffle:

- in each complete epoch, the ids that were used add up to those of the data set: each came once (or
  as often as `data.repetitions` says);
- in the incomplete epoch, each batch holds exactly the ids that the order has at its position.

Damaged records are left out and counted. What they hid cannot be proven, and is counted too.
"""

import dataclasses

import numpy as np
from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from train.data.epoch_order import example_order
from train.report.table import format_table
from train.run.records.id_log import id_sum, read_order, read_records
from train.run.records.staging import books_to_read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
  """The result of an audit.

  Attributes:
    steps: number of steps up to the last one whose batch is on record.
    images: number of images in these batches.
    blank: number of these images that could not be decoded.
    left_out: number of images in batches that were left out after rolling back.
    repetitions: number of times that an epoch uses each image.
    complete_epochs: number of epochs that used each image that many times.
    partial_epoch_images: number of images used in the incomplete epoch after these, none of them
      more often.
    repeated_steps: number of steps done again after a restart, each with the same ids as before.
    starts: number of starts of the run, roll-backs included.
    unproven_steps: number of steps whose records are damaged.
    unproven_epochs: number of complete epochs with such steps; they are not in `complete_epochs`.
  """

  steps: int
  images: int
  blank: int
  left_out: int
  repetitions: int
  complete_epochs: int
  partial_epoch_images: int
  repeated_steps: int
  starts: int
  unproven_steps: int = 0
  unproven_epochs: int = 0


def audit(workdir: str) -> Audit:
  """Reads the record of a run and proves what it has trained on.

  Args:
    workdir: folder of the run.

  Raises:
    UserError: there is no record, or a proof fails; the message says where.
  """
  with books_to_read(workdir) as folder:
    return _audit(workdir, folder)


def _audit(workdir: str, folder: str) -> Audit:
  """Proves what a run has trained on, by the records in a folder."""
  order = read_order(folder)
  records, damaged_bytes = read_records(folder)
  if not len(records):
    raise UserError(f"workdir {workdir!r} has no sound record of a batch")
  batch_size, examples = order["batch_size"], order["examples"]
  repetitions = order["repetitions"]
  epoch_images = examples * repetitions
  used, repeated_steps = _used_records(records, batch_size)

  last = int(used["step"].max())
  missing = np.setdiff1d(np.arange(1, last + 1), used["step"])
  if len(missing) and not damaged_bytes:
    raise UserError(
      f"workdir {workdir!r} has no record of step {missing[0]}, though it has one of {last}"
    )
  complete = last * batch_size // epoch_images
  # A step may have images of two epochs, or of more if an epoch is smaller than a batch.
  unproven = {
    epoch
    for step in missing
    for epoch in range(
      int(step - 1) * batch_size // epoch_images, (int(step) * batch_size - 1) // epoch_images + 1
    )
    if epoch < complete
  }
  whole_sum = id_sum(np.repeat(np.arange(examples), repetitions)) if complete else 0
  for epoch in sorted(set(range(complete)) - unproven):
    own = used[used["epoch"] == epoch]
    count = int(own["images"].sum())
    if count != epoch_images or int(own["id_sum"].sum(dtype=np.uint64)) != whole_sum:
      raise UserError(
        f"workdir {workdir!r}: the {count} images of epoch {epoch} are not the {examples} of the "
        f"data set, each {_times(repetitions)} (steps {own['step'].min()} to {own['step'].max()})"
      )
  _check_partial_epoch(workdir, used[used["epoch"] == complete], order, complete)
  return Audit(
    steps=last,
    images=int(used["images"].sum()),
    blank=int(used["blank"].sum()),
    left_out=int(used["images"][used["left_out"] == 1].sum()),
    repetitions=repetitions,
    complete_epochs=complete - len(unproven),
    partial_epoch_images=int(used["images"][used["epoch"] == complete].sum()),
    repeated_steps=repeated_steps,
    starts=len(np.unique(records["start"])),
    unproven_steps=len(missing),
    unproven_epochs=len(unproven),
  )


def _used_records(records: np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
  """Returns each step's records from the last start that has them all, and the count of repeats.

  Args:
    records: records of all processes and starts.
    batch_size: number of images per step over all processes.
  """
  records = records[np.lexsort((records["start"], records["step"]))]
  keys = np.stack([records["step"], records["start"]], axis=1)
  _, firsts = np.unique(keys, axis=0, return_index=True)
  used: dict[int, np.ndarray] = {}
  repeated_steps = 0
  for group in np.split(records, np.sort(firsts)[1:]):
    step = int(group["step"][0])
    images = int(group["images"].sum())
    if images < batch_size:
      # A process was killed before it had written its part, so this start does not count.
      continue
    if images > batch_size:
      raise UserError(f"step {step} has {images} images where a batch has {batch_size}")
    if step in used:
      repeated_steps += 1
      before, after = (int(one["id_sum"].sum(dtype=np.uint64)) for one in (used[step], group))
      if before != after:
        raise UserError(f"step {step} was done again with other images than before")
    used[step] = group
  if not used:
    raise UserError("no step has the records of all of its processes")
  return np.concatenate([used[step] for step in sorted(used)]), repeated_steps


def _check_partial_epoch(workdir: str, used: np.ndarray, order: dict, epoch: int) -> None:
  """Compares the ids of each step of the incomplete epoch with those at its place in the order."""
  batch_size, repetitions = order["batch_size"], order["repetitions"]
  ids = example_order(order["examples"], order["seed"], repetitions)
  for step in np.unique(used["step"]):
    positions = np.arange((step - 1) * batch_size, step * batch_size)
    positions = positions[positions // (order["examples"] * repetitions) == epoch]
    expected = id_sum(np.array([ids[int(position)] for position in positions]))
    if int(used["id_sum"][used["step"] == step].sum(dtype=np.uint64)) != expected:
      raise UserError(
        f"workdir {workdir!r}: the images of step {step} are not those of its place in the order"
      )


def as_text(found: Audit) -> str:
  """Formats what an audit has found as a table."""
  times = _times(found.repetitions)
  unproven = [
    ("steps whose records are damaged", f"{found.unproven_steps:,}"),
    ("epochs with such steps, not proven", f"{found.unproven_epochs:,}"),
  ]
  return format_table(
    [
      (f"steps on record{'' if found.unproven_steps else ', without a gap'}", f"{found.steps:,}"),
      ("images", f"{found.images:,}"),
      (f"complete epochs, each image {times}", f"{found.complete_epochs:,}"),
      (f"images of the epoch after these, each {times}", f"{found.partial_epoch_images:,}"),
      ("images that could not be decoded", f"{found.blank:,}"),
      ("images left out after rolling back", f"{found.left_out:,}"),
      ("starts", f"{found.starts:,}"),
      ("steps done again with the same images", f"{found.repeated_steps:,}"),
      *(unproven if found.unproven_steps else ()),
    ]
  )


def _times(repetitions: int) -> str:
  return "once" if repetitions == 1 else f"{repetitions} times"


def main(arguments: list[str]) -> None:
  """Audits the run in --workdir and prints the counts."""
  refuse_arguments(arguments)
  print(as_text(audit(flags.FLAGS.workdir)))


if __name__ == "__main__":
  define_path("workdir", None, "Folder of the run.", use="read", required=True, buckets=True)
  run_main(main)
