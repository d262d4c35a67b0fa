import contextlib
import dataclasses
import io
import os

import numpy as np
import pytest
from absl import flags
from PIL import Image

from nfnet.errors import UserError
from nfnet.system.paths import as_path
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.train.data import image_files
from train import show_data
from train.config.experiment import Data, Experiment, Mixing, Optimizer, Schedule
from train.config.overrides import parse_arguments
from train.data.batches import train_batches
from train.step.losses import targets_from_labels
from train.step.mixing import mixed_targets


@pytest.fixture
def experiment(tmp_path):
  image_files.write_dataset(tmp_path / "data", 24, 9)
  data = Data(
    path=str(tmp_path / "data"),
    num_classes=3,
    batch_size=64,
    train_pixels=32,
    evaluation_pixels=32,
    rand_augment_layers=2,
  )
  return Experiment(
    name="any",
    data=data,
    optimizer=Optimizer(warmup_epochs=0),
    schedule=Schedule(train_epochs=1),
    seed=3,
  )


def test_images_are_those_of_the_run(experiment):
  batch = show_data.first_batch(experiment, 8, evaluation=False)
  with train_batches(experiment.data, experiment.seed) as batches:
    expected = next(iter(batches))
  np.testing.assert_array_equal(batch["image"], expected["image"][:8])
  texts = show_data.captions(batch, image_files.CLASS_NAMES)
  assert texts == [image_files.CLASS_NAMES[label] for label in expected["labels"][:8, 0]]


def test_captions_of_mixed_images_are_their_targets(experiment):
  mixing = Mixing(mixup_alpha=0.2, cutmix=True)
  mixed = dataclasses.replace(experiment, mixing=mixing)
  batch = show_data.first_batch(mixed, 8, evaluation=False)
  plain = show_data.first_batch(experiment, 8, evaluation=False)
  assert (batch["image"] != plain["image"]).any(axis=(1, 2, 3)).sum() >= 6
  targets = np.asarray(mixed_targets(batch, 3))
  assert not np.allclose(targets, targets_from_labels(batch["labels"], 3))
  for text, target in zip(show_data.captions(batch, image_files.CLASS_NAMES), targets, strict=True):
    found = np.zeros(3)
    for line in text.split("\n"):
      share, _, name = line.rpartition(" ")
      found[image_files.CLASS_NAMES.index(name)] += float(share[:-1]) / 100 if share else 1
    np.testing.assert_allclose(found, target, atol=0.011)
  with pytest.raises(UserError, match="--images=6 does not suit mixing or data"):
    show_data.first_batch(mixed, 6, evaluation=False)


def test_an_evaluation_has_no_more_images_than_its_split(experiment):
  batch = show_data.first_batch(experiment, 12, evaluation=True)
  assert {len(array) for array in batch.values()} == {9}
  texts = show_data.captions(batch, image_files.CLASS_NAMES)
  assert sorted(texts) == sorted(image_files.CLASS_NAMES * 3)
  assert show_data.describe(experiment, batch, evaluation=True).startswith("9 images of validation")


def test_images_of_several_labels_and_bad_ones():
  batch = {
    "labels": np.array([[0, 2], [1, -1], [-1, -1]]),
    "weight": np.array([1, 1, 0]),
    "id": np.arange(3),
  }
  found = show_data.captions(batch, image_files.CLASS_NAMES)
  assert found == ["ant, cat", "bee", "cannot be decoded"]


@contextlib.contextmanager
def defined_flags():
  """Defines the command's flags, and no more: Grain's, defined when it is first used, stay."""
  show_data._define_flags()
  try:
    yield
  finally:
    for name in ("config", "out", "images", "columns", "evaluation"):
      delattr(flags.FLAGS, name)


def test_the_command(experiment, tmp_path, capsys):
  path = tmp_path / "new" / "sheet.png"
  with defined_flags(), group_umask():
    overrides = parse_arguments(
      [
        "show_data",
        "--config=train/configs/demo_pretrain.py",
        f"--out={path}",
        "--images=6",
        "--columns=2",
        f"--config.data.path={experiment.data.path}",
        "--config.data.num_classes=3",
        "--config.data.rand_augment_layers=4",
      ]
    )
    show_data.main(overrides)
  assert capsys.readouterr().out == (
    f"{path}: 6 images of train at 32 px, in the order of seed 0: crops of 70% to 100% of the "
    "area, half of them mirrored, RandAugment with 4 layers of magnitude 10\n"
  )
  assert modes_beside_group_umask(path.parent) == {}
  with Image.open(path) as sheet:
    assert sheet.size == (6 + 2 * 134, 6 + 3 * 164)


def test_data_and_sheet_are_in_a_bucket(experiment, gcs, tmp_path):
  """The data set's path is an argument of the configuration, which reads its manifest."""
  gcs.upload(tmp_path / "data", "data")
  sheets = {}
  for data, out in (
    (experiment.data.path, str(tmp_path / "sheet.png")),
    (f"{gcs.url}/data", f"{gcs.url}/sheets/sheet.png"),
  ):
    with defined_flags():
      config = f"--config=finetune_small:data={data},variant=P0"
      show_data.main(parse_arguments(["show_data", config, f"--out={out}", "--images=4"]))
    sheets[out] = as_path(out).read_bytes()
  with Image.open(io.BytesIO(gcs.read("sheets/sheet.png"))) as sheet:
    assert sheet.size == (6 + 2 * 134, 6 + 2 * 164)
  assert len(set(sheets.values())) == 1


@pytest.mark.parametrize("evaluation", [False, True])
def test_too_many_images_are_refused_with_the_flag_that_helps(experiment, monkeypatch, evaluation):
  monkeypatch.setattr(os, "sysconf", lambda name: 100)
  message = r"^--images=8 is too many \(.* and this host has 1e-05 GB\); lower --images$"
  with pytest.raises(UserError, match=message):
    show_data.first_batch(experiment, 8, evaluation=evaluation)
