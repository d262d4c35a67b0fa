"""Pre-trains on JFT as paper A does, any of its models with any of its budgets.

    python -m train.pretrain --config=train/configs/jft_pretrain.py:variant=F3,epochs=2 \\
        --workdir=DIR --config.data.path=DATA

On a number of chips other than 128, add for example `,chips=1024`: more than 32 images per chip
are computed in parts, and eight chips hold one copy of the parameters together where their number
allows it. On TPUs, kernels run; `,kernels=reference` runs plain JAX in a loop over equal blocks,
which compiles in less time and memory and takes longer to run. Gradients travel in bfloat16, as
accurate as float32 within the noise between seeds (BUILD_NOTES.md, "Gradients in bfloat16").

DATA holds about 4e9 images of 30,000 classes in the paper. Held-out images are evaluated at 256 px.

Expected cost and expected result: train/published_runs/paper_a_nfnets.csv has the paper's TPU-v4
core-hours and held-out loss of each network and budget, from 401 and 2.985 (F0, 0.25 epochs) to
106,615 and 2.339 (F7+, 8 epochs). `python -m train.scaling_law` predicts the values between and
beyond these.

The paper states no warm-up, weight decay, loss or dropout for these runs. Weight decay and the
absence of a moving average are those of paper B's JFT runs; the warm-up has as many images as paper
B's 5 epochs of ImageNet; softmax, no dropout and no stochastic depth are our choice.
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
)
from train.published_runs import PAPER_A_NFNETS
from train.scaling.run_table import read_runs

# The rates that paper A states, by network and epochs, for batches of 4096. The rate falls slowly
# with size: a model between two of these takes the rate of the larger one.
_PEAK_LEARNING_RATES: dict[str, dict[float, float]] = {}
for _run in read_runs([PAPER_A_NFNETS]).runs:
  if _run.learning_rate is not None:
    _PEAK_LEARNING_RATES.setdefault(_run.name, {})[_run.epochs] = _run.learning_rate
_TUNED_AS = {"F0": "F0", "F1": "F3", "F3": "F3", "F3+": "F7+", "F7": "F7+", "F7+": "F7+"}

# Plain JAX needs 35.7 GB (F6+) and 40 GB (F7+) of HBM for 32 images per chip without
# rematerialization; a TPU v4 has 34.4 GB (BUILD_NOTES.md, "Compiling the training step").
_REMATERIALIZED_ON_32_IMAGES = ("F6+", "F7+")

_BATCH_SIZE = 4096
_IMAGES_PER_CHIP_AT_ONCE = 32
# Eight parts of the filters still fill tiles of a TPU's memory, and the neighbors of a larger ring
# would have more hops to make than there is work to hide them behind.
_PARAMETER_SHARDS_MAX = 8


def experiment(
  variant: str = "F0", epochs: float = 1.0, chips: int = 128, kernels: str = "pallas"
) -> Experiment:
  if chips < 1 or _BATCH_SIZE % chips:
    raise UserError(f"{chips=}: must divide the batch of {_BATCH_SIZE}")
  images_per_chip = _BATCH_SIZE // chips
  rates = _PEAK_LEARNING_RATES[_TUNED_AS.get(variant, "F7+")]
  # If the paper has not tried this budget, the rate of the nearest one is used.
  rate = rates[min(rates, key=lambda tried: abs(tried - epochs))]
  return Experiment(
    name=f"JFT-style pre-training, NFNet-{variant}, {epochs:g} epoch{'' if epochs == 1 else 's'}",
    model=Model(
      variant=variant,
      dropout_rate=0.0,
      kernels=kernels,
      # In a loop, XLA copies the operands of kernels out of stacks.
      block_execution="scan" if kernels == "reference" else "unrolled",
      rematerialize=kernels == "reference"
      and variant in _REMATERIALIZED_ON_32_IMAGES
      and images_per_chip >= _IMAGES_PER_CHIP_AT_ONCE,
    ),
    data=Data(
      num_classes=30_000,
      batch_size=_BATCH_SIZE,
      evaluation_batch_size=4096,
      train_pixels=224,
      evaluation_pixels=256,
      evaluation_resize="squash",
      workers=16,
    ),
    optimizer=Optimizer(
      peak_learning_rate=rate,
      warmup_steps=1565,
      weight_decay=1e-6,
      ema_decay=None,
      gradient_accumulation=max(1, images_per_chip // _IMAGES_PER_CHIP_AT_ONCE),
    ),
    parallelism=Parallelism(
      parameter_shards=math.gcd(chips, _PARAMETER_SHARDS_MAX), gradient_dtype="bfloat16"
    ),
    loss=Loss(kind="softmax"),
    schedule=Schedule(
      train_epochs=epochs,
      log_every_steps=100,
      evaluate_every_steps=20_000,
      checkpoint_every_steps=2000,
    ),
  )
