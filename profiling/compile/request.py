"""What is compiled: one training step of one network on one slice."""

import dataclasses
from typing import Literal

from nfnet.errors import UserError
from nfnet.variants import get_variant
from profiling.compile.topology import Topology
from train.config.experiment import (
  Data,
  Experiment,
  Model,
  Optimizer,
  Parallelism,
  Schedule,
  Sharpness,
)

# Of F3, which takes 11 GB to compile written out; F7+ has 96 and takes 21.
_BLOCKS_WRITTEN_OUT = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRequest:
  """One training step.

  Attributes:
    variant: name of the network.
    topology: name of the slice, for example "v4:2x2x1".
    batch_per_chip: images a step and chip, over all accumulated parts.
    pixels: side of an image.
    num_classes: width of the classifier.
    kernels: "reference" or "pallas".
    bottleneck: see `nfnet.variants`.
    block_execution: "scan" or "unrolled"; None is what `block_execution_for` says.
    rematerialize: recompute each block in the backward pass.
    ema: keep a moving average of the parameters.
    parameter_shards: chips that hold one copy of the parameters together.
    gradient_accumulation: parts that a chip computes its images in, one after the other.
    gradient_dtype: in which gradients travel between chips.
    sharpness_group_images: examples that share a perturbation of SAM, which is computed from a
      fifth of them; None is without SAM.
  """

  variant: str
  topology: str
  batch_per_chip: int
  pixels: int
  num_classes: int
  kernels: Literal["reference", "pallas"] = "reference"
  bottleneck: Literal["paper", "released"] = "paper"
  block_execution: Literal["scan", "unrolled"] | None = None
  rematerialize: bool = False
  ema: bool = False
  parameter_shards: int = 1
  gradient_accumulation: int = 1
  gradient_dtype: Literal["bfloat16", "float32"] = "float32"
  sharpness_group_images: int | None = None


def block_execution_for(
  variant: str, kernels: Literal["reference", "pallas"]
) -> Literal["scan", "unrolled"]:
  """What `kernels` want, as far as the compiler manages in 16 GB.

  A loop for the references, which compiles in minutes at any depth, though its copies cost time;
  blocks written out for Pallas, in a loop where there are too many.

  Raises:
    ValueError: there is no such variant.
  """
  is_written_out = kernels == "pallas" and get_variant(variant).num_blocks <= _BLOCKS_WRITTEN_OUT
  return "unrolled" if is_written_out else "scan"


def experiment_for(request: StepRequest, chips: int) -> Experiment:
  """The experiment whose step that is: bfloat16, AGC, Nesterov momentum, as in both papers."""
  return Experiment(
    name="profiling",
    model=Model(
      variant=request.variant,
      bottleneck=request.bottleneck,
      kernels=request.kernels,
      block_execution=request.block_execution
      or block_execution_for(request.variant, request.kernels),
      rematerialize=request.rematerialize,
    ),
    data=Data(
      num_classes=request.num_classes,
      batch_size=request.batch_per_chip * chips,
      train_pixels=request.pixels,
    ),
    optimizer=Optimizer(
      warmup_steps=1,
      ema_decay=0.9999 if request.ema else None,
      gradient_accumulation=request.gradient_accumulation,
    ),
    parallelism=Parallelism(
      parameter_shards=request.parameter_shards, gradient_dtype=request.gradient_dtype
    ),
    sharpness=Sharpness(
      radius=None if request.sharpness_group_images is None else 0.05,
      group_images=request.sharpness_group_images,
    ),
    # The length changes a constant of the learning rate's schedule only.
    schedule=Schedule(train_steps=1000),
  )


def request_for(
  experiment: Experiment,
  topology: Topology,
  kernels: Literal["reference", "pallas"],
) -> StepRequest:
  """The step that an experiment runs on a slice, with kernels and execution of blocks from here.

  Raises:
    UserError: the batch does not divide among the chips.
  """
  batch, chips = experiment.data.batch_size, topology.chips
  if batch % chips:
    raise UserError(
      f"topology {topology.name!r}: a batch of {batch} does not divide among {chips} chips"
    )
  return StepRequest(
    variant=experiment.model.variant,
    topology=topology.name,
    batch_per_chip=batch // chips,
    pixels=experiment.data.train_pixels,
    num_classes=experiment.data.num_classes,
    kernels=kernels,
    bottleneck=experiment.model.bottleneck,
    block_execution=block_execution_for(experiment.model.variant, kernels),
    rematerialize=experiment.model.rematerialize,
    ema=experiment.optimizer.ema_decay is not None,
    parameter_shards=experiment.parallelism.parameter_shards,
    gradient_accumulation=experiment.optimizer.gradient_accumulation,
    gradient_dtype=experiment.parallelism.gradient_dtype,
    sharpness_group_images=experiment.sharpness.group_images,
  )
