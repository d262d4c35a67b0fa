"""The first part of the demo: pre-trains a small NFNet on Fashion-MNIST.

Fashion-MNIST consists of 28x28 photographs of clothes in 10 classes.

    python -m train.pretrain --config=train/configs/demo_pretrain.py --workdir=DIR

Expected cost: most of the demo's 2 to 4 minutes on two idle CPU cores.

Expected result: 88 % top-1 on the 10,000 held-out images.
"""

import pathlib

from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule

_DATA = pathlib.Path(__file__).parent.parent / "demo_data" / "fashion_mnist"


def experiment() -> Experiment:
  return Experiment(
    name="demo: Fashion-MNIST",
    model=Model(
      variant="P0",
      compute_dtype="float32",
      block_execution="unrolled",
      dropout_rate=0.0,
    ),
    data=Data(
      path=str(_DATA),
      num_classes=10,
      batch_size=64,
      evaluation_batch_size=500,
      train_pixels=32,
      evaluation_pixels=32,
      evaluation_resize_margin=0,
      crop_area_min=0.7,
    ),
    optimizer=Optimizer(
      peak_learning_rate=0.05,
      warmup_steps=100,
      weight_decay=5e-4,
      # Small batches need a larger clipping threshold (paper B, section 4.1).
      agc_clipping=0.1,
      ema_decay=0.999,
    ),
    loss=Loss(label_smoothing=0.1),
    schedule=Schedule(
      train_steps=3000, log_every_steps=100, evaluate_every_steps=1000, checkpoint_every_steps=100
    ),
  )
