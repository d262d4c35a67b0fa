"""The experiments that ship with the project."""

import ast

import pytest

from nfnet.errors import UserError
from tests.repository import ROOT
from train.config.experiment import Parallelism
from train.config.files import load_experiment
from train.data.manifest import Manifest, RecordFile, Split, save_manifest
from train.step.schedule import train_steps

FOLDER = ROOT / "train" / "configs"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
# Paper A, section 2: the best peak learning rate at batch 4096, for 0.25 to 8 epochs.
EPOCHS = (0.25, 0.5, 1, 2, 4, 8)
PAPER_A_RATES = {
  "F0": (1.6, 1.6, 1.6, 1.6, 1.6, 0.8),
  "F3": (1.6, 1.6, 1.6, 0.8, 0.8, 0.4),
  "F7+": (1.6, 1.6, 1.6, 0.8, 0.4, 0.4),
}
PAPER_A_VARIANTS = ("F0", "F1", "F3", "F3+", "F7", "F7+")


def load(name):
  return load_experiment(str(FOLDER / name))


def test_there_are_these_experiments():
  assert [path.stem for path in FILES] == [
    "cifar10",
    "demo_finetune",
    "demo_pretrain",
    "finetune_small",
    "imagenet",
    "imagenet_finetune",
    "jft_pretrain",
  ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_valid_and_says_command_cost_and_result(path):
  demo_data = ROOT / "train" / "demo_data" / "fashion_mnist"
  arguments = f":data={demo_data}" if path.stem == "finetune_small" else ""
  assert load(f"{path.name}{arguments}").name
  text = ast.get_docstring(ast.parse(path.read_text()))
  for words in ("python -m train.", f"--config=train/configs/{path.name}", "cost", "result"):
    assert words in text


@pytest.mark.parametrize("variant", PAPER_A_VARIANTS)
@pytest.mark.parametrize("epochs", EPOCHS)
def test_jft_pretraining_is_paper_a(variant, epochs):
  experiment = load(f"jft_pretrain.py:variant={variant},epochs={epochs}")
  assert experiment.model.variant == variant
  assert experiment.model.bottleneck == "paper"
  assert experiment.schedule.train_epochs == epochs
  assert experiment.data.batch_size == 4096
  assert experiment.data.num_classes == 30_000
  assert (experiment.data.train_pixels, experiment.data.evaluation_pixels) == (224, 256)
  assert experiment.optimizer.weight_decay == 1e-6
  assert experiment.optimizer.ema_decay is None
  if variant in PAPER_A_RATES:
    rate = PAPER_A_RATES[variant][EPOCHS.index(epochs)]
    assert experiment.optimizer.peak_learning_rate == rate


def test_the_best_rate_never_rises_with_size_or_epochs():
  def rates(variant):
    return [
      load(f"jft_pretrain.py:variant={variant},epochs={e}").optimizer.peak_learning_rate
      for e in EPOCHS
    ]

  table = [rates(variant) for variant in PAPER_A_VARIANTS]
  for row in table:
    assert row == sorted(row, reverse=True)
  for column in zip(*table, strict=True):
    assert list(column) == sorted(column, reverse=True)


def test_repetitions_change_the_passes_and_nothing_of_the_cost():
  once, often = (
    load(f"imagenet_finetune.py:variant=F7+,repetitions={repetitions}") for repetitions in (1, 4)
  )
  assert often.data.repetitions == 4
  assert train_steps(often, 1_281_167) == train_steps(once, 1_281_167) == 31_278


@pytest.mark.parametrize(
  ("images", "batch_size", "steps", "warmup_steps", "rate", "ema_decay"),
  [
    (10, 16, 500, 50, 0.00625, 0.98),
    (100, 16, 500, 50, 0.00625, 0.98),
    (320, 32, 500, 50, 0.0125, 0.98),
    (1_000, 64, 781, 78, 0.025, 0.9872),
    (10_000, 256, 1_953, 195, 0.1, 0.99488),
    (100_000, 256, 19_531, 1_953, 0.1, 0.999488),
    (1_000_000, 256, 20_000, 2_000, 0.1, 0.9995),
  ],
)
def test_fine_tuning_follows_from_the_number_of_images(
  tmp_path, images, batch_size, steps, warmup_steps, rate, ema_decay
):
  file = RecordFile(file="x.array_record", records=images, size_bytes=100 * images, sha256="0" * 64)
  split = Split(records=images, record_files=(file,))
  splits = {"train": split, "other": split}
  manifest = Manifest(class_names=("a", "b", "c"), labels_per_record_max=1, splits=splits)
  save_manifest(tmp_path, manifest)
  experiment = load(f"finetune_small.py:data={tmp_path},variant=F1")
  assert experiment.data.path == str(tmp_path)
  assert experiment.data.num_classes == 3
  assert (experiment.data.batch_size, experiment.schedule.train_steps) == (batch_size, steps)
  assert experiment.optimizer.warmup_steps == warmup_steps
  assert experiment.optimizer.peak_learning_rate == pytest.approx(rate)
  assert experiment.optimizer.ema_decay == pytest.approx(ema_decay, abs=1e-5)
  assert (experiment.data.train_pixels, experiment.data.evaluation_pixels) == (224, 320)
  assert experiment.sharpness.radius is None
  assert experiment.data.evaluation_resize_margin == 32
  small = load(f"finetune_small.py:data={tmp_path},variant=P0")
  assert (small.data.evaluation_pixels, small.data.evaluation_resize_margin) == (32, 4)
  with pytest.raises(UserError, match=r"no images in split 'none' to train on; it has train"):
    load(f"finetune_small.py:data={tmp_path},split=none")


def test_fine_tuning_follows_from_images_in_a_bucket_too(tmp_path, gcs):
  file = RecordFile(file="x.array_record", records=320, size_bytes=32_000, sha256="0" * 64)
  splits = {"train": Split(records=320, record_files=(file,))}
  manifest = Manifest(class_names=("a", "b"), labels_per_record_max=1, splits=splits)
  save_manifest(tmp_path, manifest)
  gcs.upload(tmp_path, "photographs")
  path = f"{gcs.url}/photographs"
  experiment = load_experiment(f"finetune_small:data={path},variant=P0")
  assert (experiment.data.path, experiment.data.num_classes) == (path, 2)
  assert experiment.data.batch_size == 32


@pytest.mark.parametrize(
  ("name", "rematerialized"),
  [
    ("jft_pretrain.py:variant=F7,kernels=reference", False),
    ("jft_pretrain.py:variant=F7+,kernels=reference", True),
    ("jft_pretrain.py:variant=F7+,chips=4,kernels=reference", True),
    ("jft_pretrain.py:variant=F7+,chips=1024,kernels=reference", False),
    # Kernels and eight shards leave room for all activations.
    ("jft_pretrain.py:variant=F7+", False),
    ("imagenet_finetune.py:variant=F3", False),
    ("imagenet_finetune.py:variant=F7+", True),
    ("imagenet_finetune.py:variant=F7+,kernels=pallas", False),
  ],
)
def test_rematerializes_what_would_not_fit(name, rematerialized):
  assert load(name).model.rematerialize == rematerialized


@pytest.mark.parametrize(
  ("chips", "parts"), [(4, 32), (64, 2), (128, 1), (1024, 1)], ids=lambda value: str(value)
)
def test_jft_pretraining_computes_at_most_32_images_per_chip_at_once(chips, parts):
  experiment = load(f"jft_pretrain.py:chips={chips}")
  assert experiment.data.batch_size == 4096
  assert experiment.optimizer.gradient_accumulation == parts
  assert 4096 / chips / parts <= 32


@pytest.mark.parametrize(
  ("chips", "shards"), [(1, 1), (2, 2), (4, 4), (128, 8), (1024, 8)], ids=str
)
def test_parameters_are_divided_among_up_to_eight_chips(chips, shards):
  pretraining = load(f"jft_pretrain.py:chips={chips}").parallelism
  assert pretraining == Parallelism(parameter_shards=shards, gradient_dtype="bfloat16")
  finetuning = load(f"imagenet_finetune.py:chips={chips}").parallelism
  assert finetuning == Parallelism(parameter_shards=shards)


@pytest.mark.parametrize(
  ("kernels", "block_execution"), [("pallas", "unrolled"), ("reference", "scan")]
)
@pytest.mark.parametrize("name", ["jft_pretrain.py", "imagenet_finetune.py"])
def test_blocks_run_as_suits_the_kernels(name, kernels, block_execution):
  model = load(f"{name}:kernels={kernels}").model
  assert (model.kernels, model.block_execution) == (kernels, block_execution)


def test_a_number_of_chips_below_one_is_an_error():
  with pytest.raises(UserError, match=r"^chips=0: must be at least 1$"):
    load("imagenet_finetune.py:chips=0")


@pytest.mark.parametrize("chips", [0, 3, 8192])
def test_chips_that_do_not_divide_the_batch_are_an_error(chips):
  with pytest.raises(UserError, match=rf"^chips={chips}: must divide the batch of 4096$"):
    load(f"jft_pretrain.py:chips={chips}")
