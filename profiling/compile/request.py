"""Defines the training step to compile: an experiment's, on a TPU slice.

An experiment of `train.config` is used as it is. The functions below make the only changes that
profiling makes to it, and only when a command calls them.
"""

import dataclasses
from typing import Any, Literal

from nfnet.errors import UserError
from nfnet.variants import get_variant
from profiling.compile.topology import parse_topology
from train.config.experiment import Data, Experiment, Model, Optimizer, Schedule
from train.config.json_conversion import from_json, to_json

FIELDS_OUTSIDE_THE_STEP = frozenset(
  {
    # A label.
    "name",
    # How images are read and cropped: a compiled step begins with a batch on the devices.
    "data.path",
    "data.train_split",
    "data.crop_area_min",
    "data.crop_aspect_ratio_max",
    "data.horizontal_flip",
    "data.rand_augment_layers",
    "data.rand_augment_magnitude",
    "data.repetitions",
    "data.workers",
    "data.bad_image_share_max",
    # Evaluation is another program.
    "data.evaluation_split",
    "data.evaluation_batch_size",
    "data.evaluation_pixels",
    "data.evaluation_resize",
    "data.evaluation_resize_margin",
    # When the training loop writes something.
    "schedule.log_every_steps",
    "schedule.evaluate_every_steps",
    "schedule.checkpoint_every_steps",
    "schedule.checkpoints_kept",
    # What the training loop does after a bad step. `faults.loss_max` is compiled into the step.
    "faults.skipped_in_a_row_max",
    "faults.then",
    "faults.roll_back_steps",
    "faults.roll_backs_max",
    # Values of parameters.
    "initial_weights",
  }
)
"""Fields of an experiment that cannot change the compiled training step.

Every other field, including any that `Experiment` gets later, is assumed to change it.
"""

# F3 has 48 blocks and takes 11 GB to compile unrolled; F7+ has 96 and takes 21 GB.
_UNROLLED_BLOCKS_MAX = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRequest:
  """The training step of one experiment on one slice.

  Attributes:
    experiment: experiment whose step is compiled.
    topology: name of the slice, for example "v4:2x2x1".

  Raises:
    UserError: there is no such slice, or the batch does not divide among its chips.
  """

  experiment: Experiment
  topology: str

  def __post_init__(self):
    batch_size, chips = self.experiment.data.batch_size, parse_topology(self.topology).chips
    if batch_size % chips:
      raise UserError(
        f"topology {self.topology!r}: a batch of {batch_size} does not divide among {chips} chips"
      )

  @property
  def batch_per_chip(self) -> int:
    """Returns the number of images per step and chip, over all accumulated parts."""
    return self.experiment.data.batch_size // parse_topology(self.topology).chips

  def to_json(self) -> dict[str, Any]:
    """Returns what the compiling process gets: JSON values; `from_json` is the inverse.

    `FIELDS_OUTSIDE_THE_STEP` have their defaults there, so that they cannot be part of a cache key.
    """
    experiment = without_fields_outside_the_step(self.experiment)
    return {"experiment": to_json(experiment), "topology": self.topology}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> "StepRequest":
    """Returns the request from which `to_json` made these fields."""
    return cls(experiment=from_json(fields["experiment"]), topology=fields["topology"])


def without_fields_outside_the_step(experiment: Experiment) -> Experiment:
  """Returns the experiment with the defaults of `FIELDS_OUTSIDE_THE_STEP`."""
  defaults = Experiment(name="")
  sections: dict[str, dict[str, Any]] = {}
  top_level = {}
  for field in FIELDS_OUTSIDE_THE_STEP:
    section, _, name = field.rpartition(".")
    if section:
      sections.setdefault(section, {})[name] = getattr(getattr(defaults, section), name)
    else:
      top_level[name] = getattr(defaults, name)
  return dataclasses.replace(replace_fields(experiment, **sections), **top_level)


def replace_fields(experiment: Experiment, **sections: dict[str, Any]) -> Experiment:
  """Returns the experiment with some fields replaced.

  Args:
    experiment: experiment with the old values.
    **sections: new values of fields by section, for example `model={"kernels": "pallas"}`.
  """
  return dataclasses.replace(
    experiment,
    **{
      section: dataclasses.replace(getattr(experiment, section), **fields)
      for section, fields in sections.items()
    },
  )


def block_execution_for(
  variant: str, kernels: Literal["reference", "pallas"]
) -> Literal["scan", "unrolled"]:
  """Returns the block execution that suits these kernels and compiles within 16 GB.

  The references run in a loop, which compiles in minutes at any depth, though its copies cost time.
  Pallas kernels run in unrolled blocks, or in a loop if there are too many blocks.

  Raises:
    ValueError: there is no such variant.
  """
  is_unrolled = kernels == "pallas" and get_variant(variant).num_blocks <= _UNROLLED_BLOCKS_MAX
  return "unrolled" if is_unrolled else "scan"


def plain_experiment(variant: str, *, batch_size: int, pixels: int, num_classes: int) -> Experiment:
  """Returns an experiment with what both papers have in common: bfloat16, AGC, Nesterov momentum.

  There is no regularization but weight decay and the variant's own dropout, and no moving average.

  Args:
    variant: name of the network.
    batch_size: images per step over all chips.
    pixels: side of an image.
    num_classes: width of the classifier.
  """
  return Experiment(
    name="profiling",
    model=Model(variant=variant),
    data=Data(num_classes=num_classes, batch_size=batch_size, train_pixels=pixels),
    optimizer=Optimizer(warmup_steps=1, ema_decay=None),
    # The number of steps is only a constant in the learning-rate schedule.
    schedule=Schedule(train_steps=1000),
  )
