"""Estimates what the runs of paper A would cost with this project.

How these runs train is read from `train/configs`; nothing is restated here.
"""

import dataclasses
import pathlib
from typing import Any

from tqdm import tqdm

import train.configs
from profiling.compile.request import StepRequest, replace_fields
from profiling.compile.topology import Topology
from profiling.estimate import published
from profiling.estimate.report import StepReport, report
from train.config.experiment import Experiment
from train.config.files import load_experiment

_CONFIGS = pathlib.Path(train.configs.__file__).parent
_FINETUNING_IMAGES = 50 * 1_281_167


def pretraining_experiment(variant: str, kernels: str, *, chips: int = 128) -> Experiment:
  """Returns the experiment that `train/configs/jft_pretrain.py` describes.

  Args:
    variant: name of the network.
    kernels: "reference" or "pallas".
    chips: number of chips that share the batch of 4096.

  Raises:
    UserError: the chips do not divide the batch.
  """
  return load_experiment(
    f"{_CONFIGS / 'jft_pretrain.py'}:variant={variant},chips={chips},kernels={kernels}"
  )


def finetuning_experiment(kernels: str, *, chips: int = 128) -> Experiment:
  """Returns the experiment that `train/configs/imagenet_finetune.py` describes for F7+.

  Args:
    kernels: "reference" or "pallas".
    chips: number of chips that share the batch of 2048.
  """
  return load_experiment(
    f"{_CONFIGS / 'imagenet_finetune.py'}:variant=F7+,chips={chips},kernels={kernels}"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimates:
  """The steps of all networks of paper A on one slice.

  Attributes:
    pretraining: reports of pre-training steps by variant.
    finetuning: report of the step of F7+ at 384 px, with SAM.
  """

  pretraining: dict[str, StepReport]
  finetuning: StepReport

  def core_hours(self, variant: str, epochs: float) -> float:
    """Returns the core-hours of pre-training, without evaluation, input and restarts.

    Args:
      variant: name of the network.
      epochs: length in passes over 4e9 images.
    """
    millions = epochs * published.PRETRAINING_IMAGES_PER_EPOCH / 1e6
    return millions * self.pretraining[variant].core_hours_per_million_images

  @property
  def finetuning_core_hours(self) -> float:
    """Returns the core-hours of 50 epochs of ImageNet."""
    millions = _FINETUNING_IMAGES / 1e6
    return millions * self.finetuning.core_hours_per_million_images


def requests(topology: Topology, kernels: str, **changes: dict[str, Any]) -> dict[str, StepRequest]:
  """Returns the steps to compile: each of the paper's variants, and "finetuning".

  Args:
    topology: slice.
    kernels: "reference" or "pallas".
    **changes: fields of all experiments that are to differ from the configuration, by section as
      in `profiling.compile.request.replace_fields`.

  Raises:
    UserError: the batches do not divide among the chips.
  """
  experiments = {
    variant: pretraining_experiment(variant, kernels, chips=topology.chips)
    for variant in published.VARIANTS
  }
  experiments["finetuning"] = finetuning_experiment(kernels, chips=topology.chips)
  return {
    name: StepRequest(experiment=replace_fields(experiment, **changes), topology=topology.name)
    for name, experiment in experiments.items()
  }


def estimate_all(steps: dict[str, StepRequest], **options: Any) -> Estimates:
  """Compiles the steps, one after another, and estimates their time.

  Args:
    steps: steps by name, as `requests` returns them.
    **options: see `profiling.compile.compilation.compile_step`.

  Raises:
    UserError: a step cannot be compiled.
  """
  reports = {
    name: report(request, **options)
    for name, request in tqdm(steps.items(), desc="networks", leave=False, disable=None)
  }
  finetuning = reports.pop("finetuning")
  return Estimates(pretraining=reports, finetuning=finetuning)
