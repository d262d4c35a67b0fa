import io

import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from tests.train.data.sources.miniatures import (
  cifar_10_files,
  cifar_records,
  write_cifar_archive,
)
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source

NAMES = ("airplane", "automobile", "bird")


def cifar_10():
  return cifar_10_files(NAMES)


def cifar_100():
  return {
    "train.bin": cifar_records(4, 20, classes=3, label_bytes=2),
    "test.bin": cifar_records(100, 3, classes=3, label_bytes=2),
    "fine_label_names.txt": "\n".join(NAMES).encode(),
    "coarse_label_names.txt": b"things\n",
  }


def write_folder(root, files):
  root.mkdir()
  for name, content in files.items():
    (root / name).write_bytes(content)
  return root


@pytest.mark.parametrize("files", [cifar_10(), cifar_100()])
def test_an_archive_and_its_folder_give_the_same_images(files, tmp_path):
  folder = read_source(write_folder(tmp_path / "folder", files))
  archive = read_source(write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", files))
  assert folder.class_names == archive.class_names == NAMES
  for split, first, count in (("train", 4, 20), ("validation", 100, 3)):
    for source in (folder, archive):
      images = source.splits[split]
      assert [image.labels for image in images] == [
        (number % 3,) for number in range(first, first + count)
      ]
      assert list(images) == sorted(images, key=lambda image: image.name)
      for number, image in enumerate(images, start=first):
        pixels = np.asarray(Image.open(io.BytesIO(image.read())))
        assert pixels.shape == (32, 32, 3)
        assert pixels[0, 1].tolist() == [number, number + 1, number + 2]
        assert pixels.astype(int).sum() == 3 * number + 3
  assert write_dataset(tmp_path / "data", archive).splits["train"].records == 20


def test_the_version_for_python_is_not_read(tmp_path):
  path = write_cifar_archive(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": b"a pickle"})
  with pytest.raises(UserError, match=r"pickles could run code: give .*cifar-10-binary\.tar\.gz"):
    read_source(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"test_batch.bin": None}, "has none of test.bin, test_batch.bin"),
    ({"batches.meta.txt": None}, "must have one of batches.meta.txt and fine_label_names.txt"),
    ({"fine_label_names.txt": b"a\nb\n"}, "which name the classes, but has 2"),
    (
      {"data_batch_3.bin": cifar_records(0, 2, classes=3)[:-1]},
      "data_batch_3.bin has 6,145 bytes, which is not a multiple",
    ),
    ({"data_batch_3.bin": b""}, "data_batch_3.bin has 0 bytes, which is not a multiple"),
    ({"batches.meta.txt": b"a\nb\n"}, "has label 2, but there are 2 classes"),
  ],
)
def test_damage_ends_in_one_line(change, message, tmp_path):
  files = {name: content for name, content in (cifar_10() | change).items() if content is not None}
  for source in (
    write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", files),
    write_folder(tmp_path / "folder", files),
  ):
    with pytest.raises(UserError, match=message):
      read_source(source, source_format="cifar")


def test_an_archive_that_is_cut_off(tmp_path):
  path = write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", cifar_10())
  content = path.read_bytes()
  for size in (0, 100, len(content) // 2, len(content) - 20):
    path.write_bytes(content[:size])
    with pytest.raises(UserError, match=r"is damaged: .*; download it again"):
      read_source(path)
