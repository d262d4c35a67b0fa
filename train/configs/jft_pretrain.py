"""JFT-style pre-training of paper A, for any of its models and budgets.

    python -m train.pretrain --config=train/configs/jft_pretrain.py:variant=F3,epochs=2 \\
        --workdir=DIR --config.data.path=DATA

On another number of chips than 128 add `,chips=1024`: more than 32 images a chip are computed in
parts, and fewer need no rematerialization.

DATA: about 4e9 images of 30,000 classes in the paper. Held-out evaluation at 256 px.

Expected cost and result: train/published_runs/paper_a_nfnets.csv has the paper's TPU-v4 core-hours
and held-out loss of each network and budget, from 401 and 2.985 (F0, 0.25 epochs) to 106,615 and
2.339 (F7+, 8 epochs). `python -m train.scaling_law` says what lies between and beyond.

The paper gives neither warm-up, weight decay, loss nor dropout for these runs. Weight decay and the
absence of a moving average are those of paper B's JFT runs; the warm-up is paper B's 5 epochs of
ImageNet in images; softmax and no dropout are our choice, as is stochastic depth of 0.
"""

from nfnet.errors import UserError
from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule
from train.published_runs import PAPER_A_NFNETS
from train.scaling.run_table import read_runs

# By network and epochs, where paper A gives it, at batch 4096. The rate falls slowly with size: a
# model between two of them takes the rate of the larger.
_PEAK_LEARNING_RATES: dict[str, dict[float, float]] = {}
for _run in read_runs([PAPER_A_NFNETS]).runs:
  if _run.learning_rate is not None:
    _PEAK_LEARNING_RATES.setdefault(_run.name, {})[_run.epochs] = _run.learning_rate
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
