"""What others published or wrote, and what it cost on real TPUs.

Paper A: https://arxiv.org/abs/2310.16764; its runs are in train/published_runs. Paper B:
https://arxiv.org/abs/2102.06171.
"""

import dataclasses

from train.published_runs import PAPER_A_NFNETS
from train.scaling.run_table import read_runs

PRETRAINING_IMAGES_PER_EPOCH = 4e9

FINETUNING_CORE_HOURS = 1600
"""Of F7+: 50 epochs of ImageNet at 384 px with SAM (section 3)."""


RUNS = read_runs([PAPER_A_NFNETS]).runs
"""Paper A's pre-trained networks; their compute is in TPU-v4 core-hours."""
EPOCHS = tuple(sorted({run.epochs for run in RUNS}))
VARIANTS = tuple(dict.fromkeys(run.name for run in RUNS))


@dataclasses.dataclass(frozen=True)
class VisionTransformerRun:
  """A pre-trained ViT that paper A compares with: TPU-v4 core-hours, as its text has them.

  Images are those of the ViT's own paper (https://arxiv.org/abs/2305.13035); None is not known.
  """

  model: str
  core_hours: float
  images: float | None


VISION_TRANSFORMER_RUNS = (
  VisionTransformerRun("SoViT-400m/14", 130_000, 40e9),
  VisionTransformerRun("ViT-g/14", 120_000, 16e9),
  VisionTransformerRun("ViT-G/14", 280_000, None),
)


@dataclasses.dataclass(frozen=True)
class MeasuredStep:
  """Paper B's median time of a training step on TPU v3: 32 cores, 32 images a core, bfloat16.

  Gradients are summed over the cores; the data are on the devices already.
  """

  variant: str
  pixels: int
  seconds: float


STEPS_V3 = (
  MeasuredStep("F0", 192, 0.0733),
  MeasuredStep("F1", 224, 0.1585),
  MeasuredStep("F2", 256, 0.2958),
  MeasuredStep("F3", 320, 0.5322),
  MeasuredStep("F4", 384, 1.0333),
  MeasuredStep("F5", 416, 1.3985),
)


@dataclasses.dataclass(frozen=True)
class ReleasedStep:
  """The code released with paper B, compiled for TPU v4 and estimated from its schedule.

  32 images a chip, 224 px, megacore, AGC and momentum; the sum of the operations' cycles, without
  collectives. F+ has 128 channels in its first bottlenecks there.
  """

  variant: str
  num_classes: int
  images_per_second_per_chip: float


RELEASED_STEPS_V4 = (
  ReleasedStep("F0", 1_000, 1185),
  ReleasedStep("F1", 1_000, 696),
  ReleasedStep("F3", 1_000, 381),
  ReleasedStep("F0+", 30_000, 749),
  ReleasedStep("F1+", 30_000, 458),
)


def core_hours_per_epoch(variant: str) -> float:
  """Of 4e9 images: the mean over paper A's runs of a network."""
  runs = [run for run in RUNS if run.name == variant]
  return sum(run.compute for run in runs) / sum(run.epochs for run in runs)


def images_per_second_per_chip(variant: str) -> float:
  """That paper A's core-hours imply, at two cores a chip."""
  return PRETRAINING_IMAGES_PER_EPOCH / (core_hours_per_epoch(variant) * 3600 / 2)
