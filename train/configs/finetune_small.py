r"""Fine-tunes trained weights on photographs of your own, from a hundred to a hundred thousand.

    python -m train.finetune --config=train/configs/finetune_small.py:data=DATA,variant=F0 \
        --workdir=DIR --config.initial_weights=WEIGHTS

DATA is a folder that `train.prepare_data` has written. Its number of classes, and batch, steps,
warm-up and learning rate, which follow from its number of images, are filled in; `variant` is that
of the weights. `docs/fine_tuning.md` has the rules with their reasons.

    training images       100   1,000   10,000   100,000
    images of a batch      16      64      256       256
    steps                 500     781    1,953    19,531
    passes                 80      50       50        50
    warm-up steps          50      78      195     1,953
    peak learning rate  0.006   0.025      0.1       0.1

Expected cost: 8,000 to 5 million images, of a size that depends on the variant; for P0 and 1,000
images of 32 pixels, a minute or two on a CPU.

Expected result: better than training from scratch by the more, the fewer images there are;
`docs/fine_tuning.md` has measurements.
"""

from nfnet.errors import UserError
from nfnet.system.paths import path_or_bucket
from nfnet.variants import get_variant
from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule
from train.data.dataset import local_folder
from train.data.manifest import load_manifest

_BATCH_SIZES = (16, 32, 64, 128, 256)
_STEPS_PER_PASS_MIN = 10
_PASSES = 50
_STEPS_MIN, _STEPS_MAX = 500, 20_000
# Per 256 images; proportional to the batch.
_LEARNING_RATE = 0.1


def experiment(data: str, variant: str = "F0", split: str = "train") -> Experiment:
  data = path_or_bucket("data", data)
  manifest = load_manifest(local_folder(data))
  images = manifest.splits[split].records if split in manifest.splits else 0
  if not images:
    raise UserError(
      f"{data=}: it has no images in split {split!r} to train on; it has "
      f"{', '.join(manifest.splits)}"
    )
  batch_size = max(
    (one for one in _BATCH_SIZES if one * _STEPS_PER_PASS_MIN <= images), default=_BATCH_SIZES[0]
  )
  steps = min(max(_PASSES * images // batch_size, _STEPS_MIN), _STEPS_MAX)
  size = get_variant(variant)
  return Experiment(
    name=f"fine-tuning NFNet-{variant} on {images:,} images",
    model=Model(variant=variant, stochastic_depth_rate=0.1, dropout_rate=0.25),
    data=Data(
      path=data,
      train_split=split,
      num_classes=len(manifest.class_names),
      batch_size=batch_size,
      evaluation_batch_size=batch_size,
      train_pixels=size.train_pixels,
      evaluation_pixels=size.test_pixels,
      evaluation_resize="squash",
      # Paper B's 32 pixels at 256 and above; an eighth of smaller images.
      evaluation_resize_margin=min(32, size.test_pixels // 8),
      crop_area_min=0.25,
    ),
    optimizer=Optimizer(
      peak_learning_rate=_LEARNING_RATE * batch_size / 256,
      warmup_steps=steps // 10,
      weight_decay=1e-5,
      # Small batches need a larger clipping threshold (paper B, section 4.1).
      agc_clipping=0.1,
      ema_decay=1 - 10 / steps,
    ),
    loss=Loss(label_smoothing=0.1),
    schedule=Schedule(
      train_steps=steps,
      log_every_steps=max(1, steps // 50),
      evaluate_every_steps=steps // 5,
      checkpoint_every_steps=steps // 5,
    ),
  )
