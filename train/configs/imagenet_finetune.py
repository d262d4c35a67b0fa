"""Fine-tuning on ImageNet (paper A, section 3; what it leaves open is taken from paper B).

    python -m train.finetune --config=train/configs/imagenet_finetune.py:variant=F7+ \\
        --workdir=DIR --config.data.path=DATA --config.initial_weights=PRETRAINED

Expected cost in paper A for F7+: 1.6k TPU-v4 core-hours. Expected result there, after 8 epochs of
JFT-4B: 90.3 % top-1 at 480 px; 90.4 % with `,repetitions=4` added (repeated augmentation, at the
same cost). Paper A states 50 epochs, 384 px for training and 480 px for evaluation, sharpness-aware
minimization (SAM), stochastic depth and dropout; batch, learning rate, decays and rates are those
of paper B. The papers leave open how many images share a perturbation of SAM: here those that a
chip has at 128 chips. `,group_images=8` takes another number, which any number of chips keeps to.
"""

from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule, Sharpness

# At 16 images a chip F7+ needs 23.2 GB of HBM with it and some 49 GB without, of which a TPU v4 has
# 34.4 (BUILD_NOTES.md, "Compiling the training step"); the other two by proportion to their depth.
_REMATERIALIZED_ON_16_IMAGES = ("F5+", "F6+", "F7+")


def experiment(variant: str = "F7+", repetitions: int = 1, group_images: int = 16) -> Experiment:
  return Experiment(
    name=f"fine-tuning NFNet-{variant} on ImageNet",
    model=Model(
      variant=variant,
      stochastic_depth_rate=0.1,
      dropout_rate=0.25,
      rematerialize=variant in _REMATERIALIZED_ON_16_IMAGES,
    ),
    data=Data(
      num_classes=1000,
      batch_size=2048,
      evaluation_batch_size=2048,
      train_pixels=384,
      evaluation_pixels=480,
      repetitions=repetitions,
      workers=16,
    ),
    optimizer=Optimizer(
      peak_learning_rate=0.1, warmup_steps=5000, weight_decay=1e-5, ema_decay=0.9999
    ),
    loss=Loss(label_smoothing=0.1),
    sharpness=Sharpness(radius=0.05, group_images=group_images),
    schedule=Schedule(train_epochs=50, evaluate_every_steps=3128, checkpoint_every_steps=1564),
  )
