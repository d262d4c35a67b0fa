"""NFNet-F0 on ImageNet from scratch (paper B, section 4 and appendix A).

    python -m train.prepare_data --source=IMAGENET --out=DATA
    python -m train.pretrain --config=train/configs/imagenet_f0.py --workdir=DIR \\
        --config.data.path=DATA

Expected result in the paper: 83.6 % top-1, 96.8 % top-5 at 256 px. Expected cost there: 112,600
steps of 73.3 ms on 128 TPU-v3 cores, 2.3 hours.

RandAugment, MixUp and CutMix of the paper are not in this configuration; without them expect less
than the paper's figure.
"""

from train.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule


def experiment() -> Experiment:
  return Experiment(
    name="NFNet-F0 on ImageNet from scratch",
    model=Model(variant="F0", stochastic_depth_rate=0.25),
    data=Data(
      num_classes=1000,
      batch_size=4096,
      evaluation_batch_size=4096,
      train_pixels=192,
      evaluation_pixels=256,
      workers=16,
    ),
    optimizer=Optimizer(
      peak_learning_rate=1.6, warmup_epochs=5, weight_decay=2e-5, ema_decay=0.99999
    ),
    loss=Loss(label_smoothing=0.1),
    schedule=Schedule(train_epochs=360, evaluate_every_steps=3128, checkpoint_every_steps=1564),
  )
