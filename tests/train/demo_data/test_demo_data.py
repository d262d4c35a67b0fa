import gzip
import os
import pathlib

import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.images.decoding import decode_image
from tests.train.data import image_files
from train.config import experiment
from train.data import record_files
from train.data.batches import train_batches
from train.data.manifest import load_manifest
from train.demo_data import make_digits, make_fashion_mnist

FASHION_MNIST = pathlib.Path(make_fashion_mnist.__file__).parent / "fashion_mnist"
ORIGINAL = pathlib.Path(os.environ.get("FASHION_MNIST_SOURCE", "/usr/share/datasets/fashion-mnist"))
SPLITS = ("train", "validation")


def test_the_embedded_set_is_whole_and_small():
  manifest = load_manifest(FASHION_MNIST)
  assert len(list(record_files.verify(FASHION_MNIST, manifest))) == 2
  assert sum(path.stat().st_size for path in FASHION_MNIST.iterdir()) <= 8_000_000
  assert manifest.class_names == make_fashion_mnist.CLASS_NAMES
  license_text = (FASHION_MNIST / "LICENSE").read_text()
  assert "The MIT License" in license_text
  assert "2017 Zalando SE" in license_text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_embedded_set_has_equally_many_images_of_each_class(split):
  stored = image_files.read_all(FASHION_MNIST, split)
  assert len(stored) == 10_000
  labels = np.array([record.labels for record in stored])
  np.testing.assert_array_equal(np.bincount(labels[:, 0]), [1000] * 10)


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("validation", "t10k")])
@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="needs the original idx files")
def test_the_embedded_pixels_are_the_original_ones(split, prefix):
  def read(kind, header_bytes):
    content = gzip.decompress((ORIGINAL / f"{prefix}-{kind}-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=header_bytes)

  labels = read("labels-idx1", 8)
  images = read("images-idx3", 16).reshape(len(labels), -1)
  original = {image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)}
  stored = [
    decode_image(record.image)[:, :, 0].tobytes() + bytes(record.labels)
    for record in image_files.read_all(FASHION_MNIST, split)
  ]
  assert set(stored) <= original
  if split == "validation":
    assert set(stored) == original


def test_the_embedded_set_can_be_trained_on():
  config = experiment.Data(path=str(FASHION_MNIST), num_classes=10, batch_size=64, train_pixels=32)
  with train_batches(config, seed=0) as batches:
    batch = next(batches)
  assert batch["image"].shape == (64, 32, 32, 3)
  assert batch["weight"].all()


def test_digits_are_made_in_the_same_format(tmp_path):
  make_digits.make(tmp_path / "digits")
  manifest = load_manifest(tmp_path / "digits")
  assert manifest.class_names == tuple("0123456789")
  assert {name: split.records for name, split in manifest.splits.items()} == {
    "train": 1000,
    "validation": 797,
  }
  stored = image_files.read_all(tmp_path / "digits", "train") + image_files.read_all(
    tmp_path / "digits", "validation"
  )
  pixels = np.stack([decode_image(record.image)[:, :, 0] for record in stored])
  assert pixels.shape == (1797, 8, 8)
  assert (pixels.min(), pixels.max()) == (0, 255)


def test_fewer_digits_to_train_on_are_a_part_of_more(tmp_path):
  make_digits.make(tmp_path / "few", train_images=200)
  make_digits.make(tmp_path / "more")
  (few, held_out), (more, _) = (
    [{record.image for record in image_files.read_all(tmp_path / name, split)} for split in SPLITS]
    for name in ("few", "more")
  )
  assert few < more
  assert few.isdisjoint(held_out)
  assert len(image_files.read_all(tmp_path / "few", "validation")) == 1597
  with pytest.raises(UserError, match=r"--train_images=1797: must be 1 to 1796"):
    make_digits.make(tmp_path / "none_held_out", train_images=1797)
