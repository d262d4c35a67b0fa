"""The typed fields of one experiment, each with the values that it may take.

A configuration is a Python file under `train/configs/` with one function, `experiment()`, that
returns an `Experiment`. `train.config.files` loads such files, `train.config.overrides` sets fields
from the command line, and `train.config.validation` checks what comes out: types, the requirements
that are annotated here, and the rules between fields, which are in each section's `check` method.
The unit of every number is annotated, too, for `train.config.field_help`.

Nothing here imports JAX unless an experiment is checked, so that tools can read a configuration
quickly.
"""

import dataclasses
from typing import Annotated, Literal

from nfnet.errors import UserError
from nfnet.variants import get_variant
from train.config.requirements import (
  ABOVE_0,
  ABOVE_0_UP_TO_1,
  AT_LEAST_0,
  AT_LEAST_1,
  FROM_0_BELOW_1,
  FROM_0_TO_1,
  NO_UNIT,
  PATH,
  PIXELS,
  PIXELS_OR_0,
  UNSIGNED_32_BITS,
  Unit,
  check_exactly_one,
  invalid,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The network and how it is computed.

  Attributes:
    variant: F0 to F7, F0+ to F7+, or one of the small M0 to M3, N0 to N3 and P0 to P3
      (`nfnet.variants.VARIANTS`).
    bottleneck: width of the bottleneck in F+ stage 1. "paper" has 192 channels in one group;
      "released" rounds down to 128 as the released code does. No other variant differs.
    activation: celu, elu, gelu, gelu_erf, identity, leaky_relu, log_sigmoid, log_softmax, relu,
      relu6, selu, sigmoid, silu, soft_sign, softplus or tanh (`nfnet.activations.ACTIVATIONS`).
    numerics: "released" applies the parameters as the code released with paper B does; "timm" as
      timm's `dm_nfnet_f*` do, which add 1e-5 to the variance of a filter and whose gelu is exact.
    stochastic_depth_rate: drop rate of the last block; the rates of the blocks before it grow
      linearly to it.
    dropout_rate: dropout rate before the classifier; None takes the variant's own rate (paper B,
      table 1).
    compute_dtype: dtype of activations and convolutions; parameters, logits and loss are float32.
    block_execution: "scan" runs the equal blocks of a stage as one loop, which compiles in
      minutes; "unrolled" compiles each block on its own, as Pallas kernels need it.
    kernels: "reference" is plain JAX; "pallas" takes a TPU kernel wherever one covers the shape.
    rematerialize: whether the backward pass recomputes the inside of each block to save memory.
  """

  variant: str = "F0"
  bottleneck: Literal["paper", "released"] = "paper"
  activation: str = "gelu"
  numerics: Literal["released", "timm"] = "released"
  stochastic_depth_rate: Annotated[float, FROM_0_BELOW_1, NO_UNIT] = 0.0
  dropout_rate: Annotated[float, FROM_0_BELOW_1, NO_UNIT] | None = None
  compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
  block_execution: Literal["scan", "unrolled"] = "scan"
  kernels: Literal["reference", "pallas"] = "reference"
  rematerialize: bool = False

  def check(self) -> None:
    """Raises UserError if the variant or the activation does not exist."""
    # Imports JAX.
    from nfnet.activations import ACTIVATIONS

    try:
      get_variant(self.variant)
    except ValueError as error:
      raise UserError(f"model.variant: {error}") from error
    if self.activation not in ACTIVATIONS:
      raise invalid("model.activation", self.activation, f"must be one of {', '.join(ACTIVATIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The images: where they are and how they become a batch.

  Attributes:
    path: folder that `python -m train.prepare_data` has written (it holds manifest.json), or a
      copy of it in a bucket, gs://BUCKET/PATH.
    train_split: split that the network is trained on.
    evaluation_split: held-out split.
    num_classes: number of classes of the classifier, which must be the manifest's.
    batch_size: number of images per step over all devices.
    evaluation_batch_size: number of images per step of evaluation over all devices.
    train_pixels: side of a training crop.
    evaluation_pixels: side of an evaluation image, which is cropped from the center after it was
      resized to `evaluation_resize_margin` pixels more.
    evaluation_resize: "squash" resizes both sides to this size, whatever the picture's shape, as
      the code released with paper B does; "shorter_side" keeps the picture's proportions, of which
      the crop then shows less. See `nfnet.images.resizing`.
    evaluation_resize_margin: number of pixels that the resize leaves around the crop (32 in paper
      B).
    crop_area_min: smallest share of the image's area that a random crop takes.
    crop_aspect_ratio_max: largest aspect ratio of a crop; the smallest is its inverse.
    horizontal_flip: whether half of the training images are mirrored.
    rand_augment_layers: number of random distortions of each training image
      (`train.data.rand_augment`).
    rand_augment_magnitude: strength of these distortions.
    repetitions: number of times in a row that each image is used, cropped and distorted anew each
      time (repeated augmentation). A run then makes this many times fewer passes over the data set,
      in the same number of steps.
    workers: number of processes that decode and augment; 0 uses threads of the training process.
    bad_image_share_max: share of images that could not be decoded above which the run stops.
  """

  path: Annotated[str, PATH] = ""
  train_split: str = "train"
  evaluation_split: str = "validation"
  num_classes: Annotated[int, AT_LEAST_1, Unit("classes")] = 1000
  batch_size: Annotated[int, AT_LEAST_1, Unit("images per step")] = 4096
  evaluation_batch_size: Annotated[int, AT_LEAST_1, Unit("images per step")] = 4096
  train_pixels: Annotated[int, PIXELS, Unit("pixels")] = 224
  evaluation_pixels: Annotated[int, PIXELS, Unit("pixels")] = 256
  evaluation_resize: Literal["squash", "shorter_side"] = "shorter_side"
  evaluation_resize_margin: Annotated[int, PIXELS_OR_0, Unit("pixels")] = 32
  crop_area_min: Annotated[float, ABOVE_0_UP_TO_1, NO_UNIT] = 0.08
  crop_aspect_ratio_max: Annotated[float, AT_LEAST_1, NO_UNIT] = 4 / 3
  horizontal_flip: bool = True
  rand_augment_layers: Annotated[int, AT_LEAST_0, Unit("distortions")] = 0
  rand_augment_magnitude: Annotated[float, AT_LEAST_0, NO_UNIT] = 10.0
  repetitions: Annotated[int, AT_LEAST_1, Unit("uses of an image")] = 1
  workers: Annotated[int, AT_LEAST_0, Unit("processes")] = 0
  bad_image_share_max: Annotated[float, FROM_0_TO_1, NO_UNIT] = 0.001

  def check(self) -> None:
    """Raises UserError if a batch does not hold whole groups of repetitions."""
    if self.batch_size % self.repetitions:
      raise invalid(
        "data.repetitions", self.repetitions, f"must divide data.batch_size={self.batch_size}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
  """Training images that are mixed with others of their batch, and their targets with them.

  Attributes:
    mixup_alpha: parameter of Beta(alpha, alpha), from which MixUp draws the share of one of the two
      images that it averages; None switches MixUp off.
    cutmix: whether a rectangle of each image is taken from another one. If MixUp is on too,
      each of the two mixes one half of the batch.
  """

  mixup_alpha: Annotated[float, ABOVE_0, NO_UNIT] | None = None
  cutmix: bool = False

  @property
  def is_on(self) -> bool:
    """True if images are mixed at all."""
    return self.cutmix or self.mixup_alpha is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """SGD with Nesterov momentum, adaptive gradient clipping (AGC) and L2 decay.

  Attributes:
    peak_learning_rate: learning rate after the warm-up, from which it falls to 0 as a cosine.
    warmup_epochs: length of the linear warm-up from 0, in epochs of the training split.
    warmup_steps: the same length in steps; exactly one of the two is set.
    momentum: coefficient of Nesterov momentum.
    weight_decay: coefficient of L2 decay, added after clipping; gains, biases and skip gains never
      decay.
    agc_clipping: largest ratio of gradient norm to parameter norm (paper B, section 4); None
      switches clipping off.
    ema_decay: decay of the moving average of the parameters, which is min(decay, (1 + t) /
      (10 + t)) at step t; None keeps no average.
    gradient_accumulation: number of parts that a batch is split into, computed one after the other.
  """

  peak_learning_rate: Annotated[float, ABOVE_0, NO_UNIT] = 1.6
  warmup_epochs: Annotated[float, AT_LEAST_0, Unit("epochs")] | None = None
  warmup_steps: Annotated[int, AT_LEAST_0, Unit("steps")] | None = None
  momentum: Annotated[float, FROM_0_BELOW_1, NO_UNIT] = 0.9
  weight_decay: Annotated[float, AT_LEAST_0, NO_UNIT] = 2e-5
  agc_clipping: Annotated[float, ABOVE_0, NO_UNIT] | None = 0.01
  ema_decay: Annotated[float, FROM_0_BELOW_1, NO_UNIT] | None = 0.99999
  gradient_accumulation: Annotated[int, AT_LEAST_1, Unit("parts of a batch")] = 1

  def check(self) -> None:
    """Raises UserError unless the warm-up has one length."""
    check_exactly_one(
      "optimizer.warmup_epochs", self.warmup_epochs, "optimizer.warmup_steps", self.warmup_steps
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """The loss that training minimizes.

  Attributes:
    kind: "softmax" for one label per image, "sigmoid" for any number of labels per image.
    label_smoothing: share of the target that is spread over all classes (softmax only).
    class_weights: weight of an image in the training loss, by its class. "balanced" gives every
      class the same sum of weights, whatever its number of training images, and images a mean
      weight of 1; it reads all records once when a run starts. Evaluations weigh images equally.
  """

  kind: Literal["softmax", "sigmoid"] = "softmax"
  label_smoothing: Annotated[float, FROM_0_BELOW_1, NO_UNIT] = 0.0
  class_weights: Literal["equal", "balanced"] = "equal"

  def check(self) -> None:
    """Raises UserError if labels are smoothed for a loss that does not support it."""
    if self.label_smoothing and self.kind != "softmax":
      raise invalid(
        "loss.label_smoothing",
        self.label_smoothing,
        f"must be 0 with loss.kind={self.kind}; it is for softmax only",
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharpness:
  """Sharpness-aware minimization (SAM): gradients are taken at the worst nearby parameters.

  Attributes:
    radius: distance to these parameters, in the norm of all parameters together (rho in the
      papers); None switches SAM off.
    group_images: number of examples of a batch that share one perturbation. It changes the result,
      so there is no default; a device has one group or several whole ones.
    ascent_share: share of a group's examples from whose gradient the perturbation is computed.
  """

  radius: Annotated[float, ABOVE_0, NO_UNIT] | None = None
  group_images: Annotated[int, AT_LEAST_1, Unit("images")] | None = None
  ascent_share: Annotated[float, ABOVE_0_UP_TO_1, NO_UNIT] = 0.2

  def check(self) -> None:
    """Raises UserError if only one of the radius and the group size is set."""
    if (self.radius is None) != (self.group_images is None):
      raise UserError(
        f"sharpness.radius={self.radius} and sharpness.group_images={self.group_images}: "
        "set both (SAM; 0.05 in the papers, and the examples that share a perturbation) or none"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
  """The response to steps that go wrong.

  A step whose loss is not finite, or larger than `loss_max`, is skipped: it changes nothing but the
  count of steps, and it is counted. A gradient that is not finite although the loss is finite is
  noticed only after it has been applied: the run then rolls back to a checkpoint and continues
  without that step, with the same result as if the step had been skipped.

  Attributes:
    loss_max: loss above which a step counts as an explosion; None skips only losses that are not
      finite.
    skipped_in_a_row_max: number of skipped steps in a row after which the run does what `then`
      says.
    then: "stop" ends the run, whose newest checkpoint is good. "roll_back" goes back to a
      checkpoint and continues from there, without the batches around the bad steps.
    roll_back_steps: number of batches before the first bad step that are left out after rolling
      back, since an explosion begins earlier.
    roll_backs_max: largest number of roll-backs in one start of the run; when one more would be
      due, the run ends.
  """

  loss_max: Annotated[float, NO_UNIT] | None = None
  skipped_in_a_row_max: Annotated[int, Unit("steps")] = 10
  then: Literal["stop", "roll_back"] = "stop"
  roll_back_steps: Annotated[int, Unit("steps")] = 100
  roll_backs_max: Annotated[int, Unit("roll-backs")] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
  """The division of the work among devices.

  Attributes:
    parameter_shards: number of devices that hold one copy of parameters, momentum and moving
      average together. Each of them gathers the whole parameters for a step, in the compute dtype,
      and gets the sums of its part of the gradients while earlier layers compute theirs. 1 keeps
      everything on every device. More devices hold further copies.
    gradient_dtype: dtype in which gradients travel between devices and are summed, except for small
      ones that are not divided; the optimizer works in float32. bfloat16 halves the number of bytes
      that travel.
  """

  parameter_shards: Annotated[int, Unit("devices")] = 1
  gradient_dtype: Literal["bfloat16", "float32"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The length of a run, and how often it logs, evaluates and saves.

  Exactly one of `train_epochs` and `train_steps` is set.

  Attributes:
    train_epochs: number of images trained on, divided by the number of images in the training
      split; it equals the number of passes over the split times `data.repetitions`, and may be a
      fraction.
    train_steps: number of steps.
    log_every_steps: interval of progress lines and records in metrics.jsonl.
    evaluate_every_steps: interval of evaluations; None evaluates only at the end.
    checkpoint_every_steps: interval of checkpoints; None saves only at the end.
    checkpoints_kept: number of newest checkpoints kept, besides the best one.
  """

  train_epochs: Annotated[float, ABOVE_0, Unit("epochs")] | None = None
  train_steps: Annotated[int, AT_LEAST_1, Unit("steps")] | None = None
  log_every_steps: Annotated[int, AT_LEAST_1, Unit("steps")] = 100
  evaluate_every_steps: Annotated[int, AT_LEAST_1, Unit("steps")] | None = None
  checkpoint_every_steps: Annotated[int, AT_LEAST_1, Unit("steps")] | None = 1000
  checkpoints_kept: Annotated[int, AT_LEAST_1, Unit("checkpoints")] = 2

  def check(self) -> None:
    """Raises UserError unless the run has one length."""
    check_exactly_one(
      "schedule.train_epochs", self.train_epochs, "schedule.train_steps", self.train_steps
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that decides the result of one training run.

  Attributes:
    name: name on plots and in the summary.
    seed: seed of parameters, data order, augmentation, MixUp, CutMix, dropout and stochastic depth.
      jax.random uses 32 bits of it, so larger seeds would not all be different.
    initial_weights: for fine-tuning only: a workdir, a checkpoint in it, a released haiku file or
      timm's safetensors. The classifier is always new.
  """

  name: str
  model: Model = Model()
  data: Data = Data()
  mixing: Mixing = Mixing()
  optimizer: Optimizer = Optimizer()
  loss: Loss = Loss()
  sharpness: Sharpness = Sharpness()
  schedule: Schedule = Schedule()
  parallelism: Parallelism = Parallelism()
  faults: Faults = Faults()
  seed: Annotated[int, UNSIGNED_32_BITS, NO_UNIT] = 0
  initial_weights: Annotated[str | None, PATH] = None

  def check(self) -> None:
    """Raises UserError if a rule between fields is broken, within a section or between two."""
    self.model.check()
    self.schedule.check()
    self.optimizer.check()
    for unit, warmup, train in (
      ("epochs", self.optimizer.warmup_epochs, self.schedule.train_epochs),
      ("steps", self.optimizer.warmup_steps, self.schedule.train_steps),
    ):
      if warmup is not None and train is not None and warmup > train:
        raise invalid(
          f"optimizer.warmup_{unit}", warmup, f"must not exceed schedule.train_{unit}={train}"
        )
    parts = self.optimizer.gradient_accumulation
    if self.data.batch_size % parts:
      raise invalid(
        "optimizer.gradient_accumulation",
        parts,
        f"must divide data.batch_size={self.data.batch_size}",
      )
    self.data.check()
    self.sharpness.check()
    self.loss.check()


CHANGEABLE_ON_RESUME = frozenset(
  {
    # Label only.
    "name",
    # Where and how fast images are read. The order does not depend on the number of workers, and
    # the data behind a moved path is compared by its manifest.
    "data.path",
    "data.workers",
    "data.evaluation_batch_size",
    "data.bad_image_share_max",
    # The same function of the same parameters, computed another way: a run may move to another
    # number or kind of devices.
    "model.block_execution",
    "model.kernels",
    "model.rematerialize",
    "optimizer.gradient_accumulation",
    "parallelism.parameter_shards",
    # When something is written, not what is computed.
    "schedule.log_every_steps",
    "schedule.evaluate_every_steps",
    "schedule.checkpoint_every_steps",
    "schedule.checkpoints_kept",
  }
)
"""Fields that may differ when a workdir is resumed; changing any other makes another experiment.

What is evaluated (split, pixels) stays fixed because the best checkpoint is chosen by comparing
evaluations. `train_epochs` and `train_steps` stay fixed because the cosine would jump.
`initial_weights` is not read on resuming, so a new value would silently have no effect.
"""

ACCEPTABLE_ON_RESUME = frozenset(
  {
    "optimizer.peak_learning_rate",
    "optimizer.agc_clipping",
    "faults.loss_max",
    "faults.skipped_in_a_row_max",
    "faults.then",
    "faults.roll_back_steps",
    "faults.roll_backs_max",
  }
)
"""Fields that a person may change when a run is resumed, by `train.config.accepted_changes`.

They are what one would change in a run that has diverged, and no saved array depends on them.
"""
