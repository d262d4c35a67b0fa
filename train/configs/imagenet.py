"""Trains F0 to F7 on ImageNet from scratch (paper B, section 4 and appendix A).

    python -m train.prepare_data --source=IMAGENET --out=DATA
    python -m train.pretrain --config=train/configs/imagenet.py:variant=F0 --workdir=DIR \\
        --config.data.path=DATA

Expected cost and expected result, as published: 112,600 steps of 4096 images on 128 TPU-v3 cores
take and reach

                    F0      F1      F2      F3      F4      F5   F5 SAM   F6 SAM
    ms a step     73.3   158.5   295.8   532.2  1033.3  1398.5   1958.0   2774.1
    hours          2.3     5.0     9.3    16.6    32.3    43.7     61.2     86.8
    top-1         83.6    84.7    85.1    85.7    85.9    86.0     86.3     86.5
    top-5         96.8    97.1    97.3    97.5    97.6    97.6     97.9     97.9

Add `,sharpness=true` for the columns with SAM. MixUp, CutMix and RandAugment differ in details from
the code released with the paper; `train/step/mixing.py` and `train/data/rand_augment.py` list the
differences.
"""

from nfnet.variants import get_variant
from train.config.experiment import (
  Data,
  Experiment,
  Loss,
  Mixing,
  Model,
  Optimizer,
  Schedule,
  Sharpness,
)

# The paper's number of images per core; the paper does not average ascent gradients over cores.
_GROUP_IMAGES = 32


def experiment(variant: str = "F0", sharpness: bool = False) -> Experiment:
  size = get_variant(variant)
  return Experiment(
    name=f"NFNet-{variant} on ImageNet from scratch",
    # The dropout rate is not set, because each variant has its own.
    model=Model(variant=variant, stochastic_depth_rate=0.25),
    data=Data(
      num_classes=1000,
      batch_size=4096,
      evaluation_batch_size=4096,
      train_pixels=size.train_pixels,
      evaluation_pixels=size.test_pixels,
      evaluation_resize="squash",
      rand_augment_layers=4,
      rand_augment_magnitude=size.randaugment_magnitude,
      workers=16,
    ),
    mixing=Mixing(mixup_alpha=0.2, cutmix=True),
    optimizer=Optimizer(
      peak_learning_rate=1.6, warmup_epochs=5, weight_decay=2e-5, ema_decay=0.99999
    ),
    loss=Loss(label_smoothing=0.1),
    sharpness=Sharpness(radius=0.05, group_images=_GROUP_IMAGES) if sharpness else Sharpness(),
    schedule=Schedule(train_epochs=360, evaluate_every_steps=3128, checkpoint_every_steps=1564),
  )
