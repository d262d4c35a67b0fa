"""Fine-tunes on ImageNet (paper A, section 3, and paper B where paper A states no value).

    python -m train.finetune --config=train/configs/imagenet_finetune.py:variant=F7+ \\
        --workdir=DIR --config.data.path=DATA --config.initial_weights=PRETRAINED

Expected cost: 1.6k TPU-v4 core-hours for F7+, as paper A states.

Expected result: 90.3 % top-1 at 480 px after 8 epochs of pre-training on JFT-4B, as paper A states;
90.4 % with `,repetitions=4` added (repeated augmentation, at the same cost).

Paper A states 50 epochs, 384 px for training and 480 px for evaluation, sharpness-aware
minimization (SAM), stochastic depth and dropout. Batch size, learning rate, decays and rates are
those of paper B. The papers do not state how many images share a perturbation of SAM; here it is
the number of images per chip on 128 chips. Another number, set for example by `,group_images=8`,
also applies to any number of chips.

On a TPU slice, add `,kernels=pallas,chips=128` with its number of chips: kernels run then, in
unrolled blocks, and up to eight chips hold one copy of the parameters together.
"""

import math

from nfnet.errors import UserError
from train.config.experiment import (
  Data,
  Experiment,
  Loss,
  Model,
  Optimizer,
  Parallelism,
  Schedule,
  Sharpness,
)

# With 16 images per chip, F7+ in plain JAX needs 23.2 GB of HBM with rematerialization and about 49
# GB without; a TPU v4 has 34.4 GB (BUILD_NOTES.md, "Compiling the training step"). The other two
# are estimated in proportion to their depth.
_REMATERIALIZED_ON_16_IMAGES = ("F5+", "F6+", "F7+")


def experiment(
  variant: str = "F7+",
  repetitions: int = 1,
  group_images: int = 16,
  kernels: str = "reference",
  chips: int = 1,
) -> Experiment:
  if chips < 1:
    raise UserError(f"{chips=}: must be at least 1")
  return Experiment(
    name=f"fine-tuning NFNet-{variant} on ImageNet",
    model=Model(
      variant=variant,
      stochastic_depth_rate=0.1,
      dropout_rate=0.25,
      kernels=kernels,
      block_execution="scan" if kernels == "reference" else "unrolled",
      rematerialize=kernels == "reference" and variant in _REMATERIALIZED_ON_16_IMAGES,
    ),
    data=Data(
      num_classes=1000,
      batch_size=2048,
      evaluation_batch_size=2048,
      train_pixels=384,
      evaluation_pixels=480,
      evaluation_resize="squash",
      repetitions=repetitions,
      workers=16,
    ),
    optimizer=Optimizer(
      peak_learning_rate=0.1, warmup_steps=5000, weight_decay=1e-5, ema_decay=0.9999
    ),
    parallelism=Parallelism(parameter_shards=math.gcd(chips, 8)),
    loss=Loss(label_smoothing=0.1),
    sharpness=Sharpness(radius=0.05, group_images=group_images),
    schedule=Schedule(train_epochs=50, evaluate_every_steps=3128, checkpoint_every_steps=1564),
  )
