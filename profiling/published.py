"""What others published or wrote, and what it cost on real TPUs.

Paper A: https://arxiv.org/abs/2310.16764, figures 1 and 2; hours and losses are read off the
figures' pixels: about 1 % in hours, 0.003 in loss. Paper B: https://arxiv.org/abs/2102.06171.
"""

import dataclasses

PRETRAINING_IMAGES_PER_EPOCH = 4e9
EPOCHS = (0.25, 0.5, 1, 2, 4, 8)

FINETUNING_CORE_HOURS = 1600
"""Of F7+: 50 epochs of ImageNet at 384 px with SAM (section 3)."""


@dataclasses.dataclass(frozen=True)
class Run:
  """One pre-trained network: TPU-v4 core-hours and held-out loss in nats."""

  variant: str
  epochs: float
  core_hours: float
  loss: float


# Core-hours and loss for each of EPOCHS.
_RUNS = {
  "F0": ((401, 2.985), (800, 2.89), (1610, 2.830), (3203, 2.748), (6502, 2.703), (12950, 2.663)),
  "F1": ((702, 2.903), (1300, 2.817), (2701, 2.718), (5400, 2.65), (10700, 2.60), (21325, 2.555)),
  "F3": ((1204, 2.869), (2403, 2.753), (4870, 2.66), (9829, 2.575), (19611, 2.505), (38930, 2.469)),
  "F3+": (
    (1805, 2.816), (3500, 2.717), (7008, 2.605), (14102, 2.523), (28195, 2.460), (56000, 2.415)
  ),
  "F7": (
    (2407, 2.830), (4800, 2.71), (9604, 2.609), (19224, 2.520), (38291, 2.448), (76233, 2.397)
  ),
  "F7+": (
    (3308, 2.775), (6699, 2.658), (13380, 2.588), (26750, 2.485), (53459, 2.434), (106615, 2.339)
  ),
}  # fmt: skip

RUNS = tuple(
  Run(variant, epochs, *point)
  for variant, points in _RUNS.items()
  for epochs, point in zip(EPOCHS, points, strict=True)
)
VARIANTS = tuple(_RUNS)


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
  runs = [run for run in RUNS if run.variant == variant]
  return sum(run.core_hours for run in runs) / sum(run.epochs for run in runs)


def images_per_second_per_chip(variant: str) -> float:
  """That paper A's core-hours imply, at two cores a chip."""
  return PRETRAINING_IMAGES_PER_EPOCH / (core_hours_per_epoch(variant) * 3600 / 2)
