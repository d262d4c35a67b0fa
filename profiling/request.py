"""What is compiled: one training step of one network on one slice."""

import dataclasses
from typing import Literal

from train.experiment import Data, Experiment, Model, Optimizer, Parallelism, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRequest:
  """One training step.

  Attributes:
    variant: name of the network.
    topology: name of the slice, for example "v4:2x2x1".
    batch_per_chip: images a step and chip.
    pixels: side of an image.
    num_classes: width of the classifier.
    kernels: "reference" or "pallas".
    bottleneck: see `nfnet.variants`.
    block_execution: "scan" or "unrolled"; None is what the kernels want: a loop for the references,
      which compiles in minutes at any depth, though its copies cost time; unrolled for Pallas.
    rematerialize: recompute each block in the backward pass.
    ema: keep a moving average of the parameters.
    parameter_shards: chips that hold one copy of the parameters together.
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


def experiment_for(request: StepRequest, chips: int) -> Experiment:
  """The experiment whose step that is: bfloat16, AGC, Nesterov momentum, as in both papers."""
  return Experiment(
    name="profiling",
    model=Model(
      variant=request.variant,
      bottleneck=request.bottleneck,
      kernels=request.kernels,
      block_execution=request.block_execution
      or ("scan" if request.kernels == "reference" else "unrolled"),
      rematerialize=request.rematerialize,
    ),
    data=Data(
      num_classes=request.num_classes,
      batch_size=request.batch_per_chip * chips,
      train_pixels=request.pixels,
    ),
    optimizer=Optimizer(warmup_steps=1, ema_decay=0.9999 if request.ema else None),
    parallelism=Parallelism(parameter_shards=request.parameter_shards),
    # The length changes a constant of the learning rate's schedule only.
    schedule=Schedule(train_steps=1000),
  )
