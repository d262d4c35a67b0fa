"""The second part of the demo: fine-tunes the network of the first part on handwritten digits.

    python -m train.demo_data.make_digits --out=DIGITS
    python -m train.finetune --config=train/configs/demo_finetune.py --workdir=DIR \\
        --config.data.path=DIGITS --config.initial_weights=PRETRAINED

Expected cost: less than a minute on two idle CPU cores, most of it compilation.

Expected result: 98 % top-1 on the 797 held-out digits. Training from scratch, with `train.pretrain`
and the same configuration, reaches 93 %.
"""

from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule


def experiment() -> Experiment:
  return Experiment(
    name="demo: digits",
    model=Model(
      variant="P0", compute_dtype="float32", block_execution="unrolled", dropout_rate=0.0
    ),
    data=Data(
      num_classes=10,
      batch_size=64,
      evaluation_batch_size=500,
      train_pixels=32,
      evaluation_pixels=32,
      evaluation_resize_margin=0,
      crop_area_min=0.6,
      # A mirrored digit is not a digit any more.
      horizontal_flip=False,
    ),
    optimizer=Optimizer(
      peak_learning_rate=0.05,
      warmup_steps=20,
      weight_decay=5e-4,
      agc_clipping=0.1,
      ema_decay=0.99,
    ),
    loss=Loss(label_smoothing=0.1),
    schedule=Schedule(train_steps=120, log_every_steps=20, checkpoint_every_steps=None),
  )
