"""JFT-style pre-training of paper A, for any of its models and budgets.

    python -m train.pretrain --config=train/configs/jft_pretrain.py:variant=F3,epochs=2 \\
        --workdir=DIR --config.data.path=DATA

On another number of chips than 128 add `,chips=1024`: more than 32 images a chip are computed in
parts, and fewer need no rematerialization.

DATA: about 4e9 images of 30,000 classes in the paper. Held-out evaluation at 256 px.

Expected cost and result in the paper (figure 2), TPU-v4 core-hours / held-out loss:

    epochs      F0             F1             F3             F3+             F7             F7+
    0.25    401 / 2.985    702 / 2.903   1204 / 2.869   1805 / 2.816   2407 / 2.830   3308 / 2.775
    0.5     800 / 2.89    1300 / 2.817   2403 / 2.753   3500 / 2.717   4800 / 2.71    6699 / 2.658
    1      1610 / 2.830   2701 / 2.718   4870 / 2.66    7008 / 2.605   9604 / 2.609  13380 / 2.588
    2      3203 / 2.748   5400 / 2.65    9829 / 2.575  14102 / 2.523  19224 / 2.520  26750 / 2.485
    4      6502 / 2.703  10700 / 2.60   19611 / 2.505  28195 / 2.460  38291 / 2.448  53459 / 2.434
    8     12950 / 2.663  21325 / 2.555  38930 / 2.469  56000 / 2.415  76233 / 2.397 106615 / 2.339

The paper gives neither warm-up, weight decay, loss nor dropout for these runs. Weight decay and the
absence of a moving average are those of paper B's JFT runs; the warm-up is paper B's 5 epochs of
ImageNet in images; softmax and no dropout are our choice, as is stochastic depth of 0.
"""

from nfnet.errors import UserError
from train.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule

# Paper A, section 2 (best peak learning rate at batch 4096), where F0, F3 and F7+ are given. The
# rate falls slowly with size: a model between two of them takes the rate of the larger.
_PEAK_LEARNING_RATES = {
  "F0": {0.25: 1.6, 0.5: 1.6, 1: 1.6, 2: 1.6, 4: 1.6, 8: 0.8},
  "F3": {0.25: 1.6, 0.5: 1.6, 1: 1.6, 2: 0.8, 4: 0.8, 8: 0.4},
  "F7+": {0.25: 1.6, 0.5: 1.6, 1: 1.6, 2: 0.8, 4: 0.4, 8: 0.4},
}
_TUNED_AS = {"F0": "F0", "F1": "F3", "F3": "F3", "F3+": "F7+", "F7": "F7+", "F7+": "F7+"}

# Without it, 32 images a chip need 35.7 and 40 GB of HBM; a TPU v4 has 34.4 (BUILD_NOTES.md,
# "Compiling the training step"). With it, kernels and gradients in parts F7+ needs 24.4, and with 4
# images a chip 22.3 without it (profiling/results/slices.json).
_REMATERIALIZED_ON_32_IMAGES = ("F6+", "F7+")

_BATCH_SIZE = 4096
_IMAGES_A_CHIP_AT_ONCE = 32


def experiment(variant: str = "F0", epochs: float = 1.0, chips: int = 128) -> Experiment:
  if chips < 1 or _BATCH_SIZE % chips:
    raise UserError(f"{chips=}: must divide the batch of {_BATCH_SIZE}")
  images_a_chip = _BATCH_SIZE // chips
  rates = _PEAK_LEARNING_RATES[_TUNED_AS.get(variant, "F7+")]
  # Of the nearest budget, where the paper has not tried this one.
  rate = rates[min(rates, key=lambda tried: abs(tried - epochs))]
  return Experiment(
    name=f"JFT-style pre-training, NFNet-{variant}, {epochs:g} epochs",
    model=Model(
      variant=variant,
      dropout_rate=0.0,
      rematerialize=variant in _REMATERIALIZED_ON_32_IMAGES
      and images_a_chip >= _IMAGES_A_CHIP_AT_ONCE,
    ),
    data=Data(
      num_classes=30_000,
      batch_size=_BATCH_SIZE,
      evaluation_batch_size=4096,
      train_pixels=224,
      evaluation_pixels=256,
      workers=16,
    ),
    optimizer=Optimizer(
      peak_learning_rate=rate,
      warmup_steps=1565,
      weight_decay=1e-6,
      ema_decay=None,
      gradient_accumulation=max(1, images_a_chip // _IMAGES_A_CHIP_AT_ONCE),
    ),
    loss=Loss(kind="softmax"),
    schedule=Schedule(
      train_epochs=epochs,
      log_every_steps=100,
      evaluate_every_steps=20_000,
      checkpoint_every_steps=2000,
    ),
  )
