"""What paper A published about cost: https://arxiv.org/abs/2310.16764, figures 1 and 2.

Hours and losses are read off the figures' pixels: about 1 % in hours, 0.003 in loss.
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
