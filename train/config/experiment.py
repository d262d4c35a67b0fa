"""What one experiment is: the typed fields that a configuration file fills in.

A configuration is a Python file under `train/configs/` with one function, `experiment()`, that
returns an `Experiment`. `train/config/config_file.py` loads such files and applies overrides from
the command line. Nothing here imports JAX, so that tools can read a configuration quickly.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The network and how it is computed.

  Attributes:
    variant: a name from `nfnet.variants.VARIANTS`, for example "F0" or "F7+".
    bottleneck: "paper" gives F+ stage 1 a bottleneck of 192 channels in one group; "released"
      rounds it down to 128 as the released code does. No other variant differs.
    activation: a name from `nfnet.activations.ACTIVATIONS`.
    stochastic_depth_rate: drop rate that the last block would have; blocks grow linearly to it.
    dropout_rate: before the classifier; None takes the variant's own rate (paper B, table 1).
    compute_dtype: of activations and convolutions; parameters, logits and loss are float32.
    block_execution: "scan" runs the equal blocks of a stage as one loop, which compiles in
      minutes; "unrolled" writes them out, which is what Pallas kernels want.
    kernels: "reference" is plain JAX; "pallas" takes a TPU kernel wherever one covers the shape.
    rematerialize: recompute each block's inside in the backward pass to save memory.
  """

  variant: str = "F0"
  bottleneck: Literal["paper", "released"] = "paper"
  activation: str = "gelu"
  stochastic_depth_rate: float = 0.0
  dropout_rate: float | None = None
  compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
  block_execution: Literal["scan", "unrolled"] = "scan"
  kernels: Literal["reference", "pallas"] = "reference"
  rematerialize: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The images: where they are and how a batch is made of them.

  Attributes:
    path: folder that `python -m train.prepare_data` wrote (holds manifest.json).
    train_split: split that is trained on.
    evaluation_split: split that is held out.
    num_classes: classes of the classifier; must be what the manifest says.
    batch_size: images a step, over all devices.
    evaluation_batch_size: images a step of evaluation, over all devices.
    train_pixels: side of a training crop.
    evaluation_pixels: side of an evaluation image; resized to `evaluation_resize_margin` more,
      then cropped at the center.
    evaluation_resize_margin: pixels that the resize leaves around the crop (32 in paper B).
    crop_area_min: smallest share of the image's area that a random crop takes.
    crop_aspect_ratio_max: crops have an aspect ratio in [1 / this, this].
    horizontal_flip: mirror half of the training images.
    rand_augment_layers: random distortions of each training image (`train.data.rand_augment`).
    rand_augment_magnitude: of these.
    repetitions: how often an image comes in a batch, each time cropped and distorted anew, before
      the next image does (repeated augmentation). The steps of a run do not change: it passes over
      the data set as many times less often.
    workers: processes that decode and augment; 0 does it in threads of the training process.
    bad_image_share_max: the run stops when a larger share of the images could not be decoded.
  """

  path: str = ""
  train_split: str = "train"
  evaluation_split: str = "validation"
  num_classes: int = 1000
  batch_size: int = 4096
  evaluation_batch_size: int = 4096
  train_pixels: int = 224
  evaluation_pixels: int = 256
  evaluation_resize_margin: int = 32
  crop_area_min: float = 0.08
  crop_aspect_ratio_max: float = 4 / 3
  horizontal_flip: bool = True
  rand_augment_layers: int = 0
  rand_augment_magnitude: float = 10.0
  repetitions: int = 1
  workers: int = 0
  bad_image_share_max: float = 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
  """Training images that are mixed with others of their batch, and targets with them.

  Attributes:
    mixup_alpha: MixUp averages two images, the share of one drawn from Beta(alpha, alpha); None is
      no MixUp.
    cutmix: a rectangle of another image in each. With MixUp too, each of them mixes one half of the
      batch.
  """

  mixup_alpha: float | None = None
  cutmix: bool = False

  @property
  def is_on(self) -> bool:
    """Whether images are mixed at all."""
    return self.cutmix or self.mixup_alpha is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """SGD with Nesterov momentum, adaptive gradient clipping (AGC) and L2 decay.

  Attributes:
    peak_learning_rate: reached after the warm-up; cosine to 0 from there.
    warmup_epochs: linear warm-up from 0, in epochs of the training split.
    warmup_steps: the same in steps; exactly one of the two is set.
    momentum: Nesterov momentum.
    weight_decay: L2, added after the clip; never on gains, biases, skip gains.
    agc_clipping: largest ratio of gradient norm to parameter norm (paper B, section 4); None is
      no clipping.
    ema_decay: of the moving average of the parameters, with min(decay, (1 + t) / (10 + t)); None
      keeps none.
    gradient_accumulation: parts that a batch is split into, one after the other.
  """

  peak_learning_rate: float = 1.6
  warmup_epochs: float | None = None
  warmup_steps: int | None = None
  momentum: float = 0.9
  weight_decay: float = 2e-5
  agc_clipping: float | None = 0.01
  ema_decay: float | None = 0.99999
  gradient_accumulation: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """What is minimized.

  Attributes:
    kind: "softmax" for one label an image; "sigmoid" for any number of labels an image.
    label_smoothing: share of the target that is spread over all classes (softmax only).
  """

  kind: Literal["softmax", "sigmoid"] = "softmax"
  label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharpness:
  """Sharpness-aware minimization (SAM): gradients are taken where nearby parameters are worst.

  Attributes:
    radius: how far away that is, in the norm of all parameters together; rho in the papers. None is
      plain gradients.
    group_images: examples of a batch that share one perturbation. It changes the result, so there
      is no default; a device has one group or several whole ones.
    ascent_share: of a group's examples, from whose gradient the perturbation is computed.
  """

  radius: float | None = None
  group_images: int | None = None
  ascent_share: float = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
  """What is done about steps that go wrong.

  A step whose loss is not finite, or larger than `loss_max`, is skipped: it changes nothing but the
  count of steps, and is counted. A gradient that is not finite though the loss was is noticed when
  it has been applied: the run then goes back to a checkpoint and on without that step, which leaves
  what skipping it would have left.

  Attributes:
    loss_max: a larger loss is an explosion; None takes only what is not finite for one.
    skipped_in_a_row_max: after this many skipped steps in a row, the run does what `then` says.
    then: "stop" ends the run, whose newest checkpoint is good. "roll_back" goes back to a
      checkpoint and on from there, without the batches around the bad steps.
    roll_back_steps: batches before the first bad step that are left out after rolling back, since
      what explodes began earlier.
    roll_backs_max: of one start of the run; where one more would be due, it ends.
  """

  loss_max: float | None = None
  skipped_in_a_row_max: int = 10
  then: Literal["stop", "roll_back"] = "stop"
  roll_back_steps: int = 100
  roll_backs_max: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
  """How the devices share the work.

  Attributes:
    parameter_shards: devices that hold one copy of parameters, momentum and moving average
      together; each gathers the whole parameters for a step, in the compute dtype, and keeps the
      gradients of its part. 1 has everything on every device.
    gradient_dtype: in which gradients travel between devices and are summed up; the optimizer works
      in float32. With bfloat16 half as many bytes travel.
  """

  parameter_shards: int = 1
  gradient_dtype: Literal["bfloat16", "float32"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """How long, how often. Exactly one of `train_epochs` and `train_steps` is set.

  Attributes:
    train_epochs: images that are trained on by images of the training split, which are the passes
      over it, times `data.repetitions`; a fraction is fine.
    train_steps: steps.
    log_every_steps: a progress line and a record in metrics.jsonl.
    evaluate_every_steps: None evaluates only at the end.
    checkpoint_every_steps: None saves only at the end.
    checkpoints_kept: newest checkpoints kept; the best one is kept besides.
  """

  train_epochs: float | None = None
  train_steps: int | None = None
  log_every_steps: int = 100
  evaluate_every_steps: int | None = None
  checkpoint_every_steps: int | None = 1000
  checkpoints_kept: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that makes one training run what it is.

  Attributes:
    name: shown on plots and in the summary.
    seed: of parameters, data order, augmentation, dropout and stochastic depth.
    initial_weights: fine-tuning only: a workdir, a checkpoint in it, a released haiku file or
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
  seed: int = 0
  initial_weights: str | None = None


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
"""Fields that may differ when a workdir is resumed; all others make it another experiment.

What is evaluated (split, pixels) stays fixed because the best checkpoint is chosen by comparing
evaluations. `train_epochs` and `train_steps` stay fixed because the cosine would jump.
`initial_weights` is not read on resuming, so it can always stay as it was, and a new value would be
silently without effect.
"""
