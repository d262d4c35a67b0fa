"""Trains a small NFNet on CIFAR-10 from scratch, on a CPU.

    python -m train.prepare_data --source=cifar-10-binary.tar.gz --out=DATA
    export JAX_NUM_CPU_DEVICES=2 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
    python -m train.pretrain --config=train/configs/cifar10.py --workdir=DIR \\
        --config.data.path=DATA

The variables make a device of each of two cores; `docs/cifar10.md` has a third one, which makes it
faster still. The archive is the binary version of
https://www.cs.toronto.edu/~kriz/cifar.html: 50,000 training and 10,000 test images of 32 pixels in
10 classes.

Expected cost: 55 minutes on two CPU cores.

Expected result: 85.1 % top-1 on the test images (`docs/cifar10.md`).
"""

from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule


def experiment() -> Experiment:
  return Experiment(
    name="CIFAR-10",
    model=Model(
      variant="P0",
      compute_dtype="float32",
      block_execution="unrolled",
      # So small a network needs all of its features.
      dropout_rate=0.0,
    ),
    data=Data(
      num_classes=10,
      batch_size=64,
      evaluation_batch_size=500,
      train_pixels=64,
      evaluation_pixels=64,
      # As in paper B, test images lose a margin: crops of at least three fifths of the area show
      # things 12 % larger, in the mean, than they are in the whole image.
      evaluation_resize_margin=6,
      crop_area_min=0.6,
    ),
    optimizer=Optimizer(
      peak_learning_rate=0.05,
      warmup_steps=200,
      weight_decay=1e-3,
      # Small batches need a larger clipping threshold (paper B, section 4.1).
      agc_clipping=0.4,
      ema_decay=0.999,
    ),
    loss=Loss(label_smoothing=0.1),
    schedule=Schedule(
      train_steps=22_500,
      log_every_steps=250,
      evaluate_every_steps=4500,
      checkpoint_every_steps=4500,
    ),
  )
