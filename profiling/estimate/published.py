"""Lists what others trained on real TPUs and what it cost, as published.

Paper A is https://arxiv.org/abs/2310.16764; its runs are in train/published_runs. Paper B is
https://arxiv.org/abs/2102.06171.
"""

import dataclasses

from profiling.compiler_text.chips import CHIPS
from profiling.estimate.core_hours import core_hours
from train.published_runs import PAPER_A_NFNETS
from train.scaling.run_table import read_runs

PRETRAINING_IMAGES_PER_EPOCH = 4e9

FINETUNING_CORE_HOURS = 1600
"""TPU-v4 core-hours of 50 epochs of ImageNet with F7+, at 384 px with SAM (paper A, section 3)."""


RUNS = read_runs([PAPER_A_NFNETS]).runs
"""Paper A's pre-trained networks; their compute is in TPU-v4 core-hours."""
EPOCHS = tuple(sorted({run.epochs for run in RUNS}))
VARIANTS = tuple(dict.fromkeys(run.name for run in RUNS))


@dataclasses.dataclass(frozen=True)
class VisionTransformerRun:
  """A pre-trained vision transformer (ViT) that paper A compares NFNets with.

  Attributes:
    model: name of the network.
    core_hours: TPU-v4 core-hours, from the text of paper A.
    images: number of images seen, from the ViT's own paper (https://arxiv.org/abs/2305.13035);
      None where it is unknown.
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

  Gradients are summed over the cores; the data are already on the devices.

  Attributes:
    variant: name of the network.
    pixels: side of an image.
    seconds: step time.
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
  """A step of the code released with paper B, compiled for TPU v4 and estimated from its schedule.

  It has 32 images a chip, 224 px, megacore, AGC and momentum. Its time is the sum of the
  operations' cycles, without collectives. F+ has 128 channels in its first bottlenecks there.

  Attributes:
    variant: name of the network.
    num_classes: width of the classifier.
    images_per_second_per_chip: estimated speed.
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
  """Returns the TPU-v4 core-hours of 4e9 images, the mean over paper A's runs of a network."""
  runs = [run for run in RUNS if run.name == variant]
  return sum(run.compute for run in runs) / sum(run.epochs for run in runs)


def images_per_second_per_chip(variant: str) -> float:
  """Returns the speed that paper A's core-hours imply."""
  # At one image a second, an epoch takes as many seconds as it has images.
  slow = core_hours(CHIPS["v4"], 1, PRETRAINING_IMAGES_PER_EPOCH)
  return slow / core_hours_per_epoch(variant)
