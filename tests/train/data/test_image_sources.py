import gzip
import os
import struct

import numpy as np
import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data.image_sources import read_source


def test_images_added_later_move_no_other_image_across_the_splits(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  before = read_source(source, 0.3).splits
  image_files.write_class_folders(source, 5, class_names=("dog",))
  after = read_source(source, 0.3).splits
  for split, images in before.items():
    assert {image.name for image in images} <= {image.name for image in after[split]}
  assert len(before["validation"]) == pytest.approx(0.3 * 60, abs=11)  # 3 standard deviations


def no_folder(root):
  return "does not exist"


def empty_folder(root):
  root.mkdir()
  return "has no class folders"


def images_without_class_folders(root):
  root.mkdir()
  (root / "a.jpg").write_bytes(image_files.JPEG)
  return "has no class folders"


def class_folder_without_images(root):
  image_files.write_class_folders(root, 3)
  (root / "dog").mkdir()
  (root / "dog" / "readme.txt").write_text("none")
  return "class folder .*dog has no image"


def held_out_class_without_counterpart(root):
  image_files.write_class_folders(root / "train", 2)
  image_files.write_class_folders(root / "val", 2, class_names=("dog",))
  return "class folder .*val/dog' has no counterpart"


def two_held_out_folders(root):
  for split in ("train", "val", "validation"):
    image_files.write_class_folders(root / split, 1)
  return "both val and validation"


def too_few_images_to_hold_out(root):
  image_files.write_class_folders(root, 1, class_names=("ant", "bee"))
  return "leaves none for"


def idx_without_labels(root):
  image_files.write_idx_source(root)
  (root / "t10k-labels-idx1-ubyte").unlink()
  return r"has no file t10k-labels-idx1-ubyte"


def idx_cut_short(root):
  image_files.write_idx_source(root)
  path = root / "train-images-idx3-ubyte"
  path.write_bytes(path.read_bytes()[:-1])
  return "train-images-idx3-ubyte has 9407 values"


def compressed_idx_cut_short(root):
  image_files.write_idx_source(root, ".gz")
  path = root / "train-images-idx3-ubyte.gz"
  path.write_bytes(path.read_bytes()[:-20])
  return "train-images-idx3-ubyte.gz is damaged"


def idx_that_is_none(root):
  image_files.write_idx_source(root)
  (root / "train-labels-idx1-ubyte").write_bytes(b"<!doctype html>")
  return "train-labels-idx1-ubyte is not an idx file"


def more_idx_images_than_labels(root):
  image_files.write_idx_source(root)
  image_files.write_idx(root / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))
  return "12 train images but 11 labels"


def idx_that_claims_more_than_memory(root):
  image_files.write_idx_source(root)
  header = struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 4096, 4096)
  (root / "train-images-idx3-ubyte").write_bytes(header + bytes(100))
  return "train-images-idx3-ubyte has values of shape .*: .* at most 671,088,640 in all"


def idx_with_images_without_pixels(root):
  image_files.write_idx_source(root)
  image_files.write_idx(root / "train-images-idx3-ubyte", np.zeros((12, 0, 28), np.uint8))
  return "there must be at least one"


def idx_with_long_images(root):
  image_files.write_idx_source(root)
  image_files.write_idx(root / "train-images-idx3-ubyte", np.zeros((12, 1, 4097), np.uint8))
  return "at most 4,096 on the side of an image"


def compressed_idx_that_expands_without_end(root):
  image_files.write_idx_source(root, ".gz")
  path = root / "train-images-idx3-ubyte.gz"
  content = gzip.decompress(path.read_bytes())
  path.write_bytes(gzip.compress(content + bytes(50_000_000), 1))
  return "train-images-idx3-ubyte.gz has more values"


def idx_folder(root):
  image_files.write_idx_source(root)
  (root / "train-images-idx3-ubyte").unlink()
  (root / "train-images-idx3-ubyte").mkdir()
  return "train-images-idx3-ubyte cannot be read: Is a directory"


def idx_pipe(root):
  image_files.write_idx_source(root)
  (root / "train-labels-idx1-ubyte").unlink()
  os.mkfifo(root / "train-labels-idx1-ubyte")
  return "train-labels-idx1-ubyte cannot be read: not a regular file"


@pytest.mark.parametrize(
  "write_source",
  [
    no_folder,
    empty_folder,
    images_without_class_folders,
    class_folder_without_images,
    held_out_class_without_counterpart,
    two_held_out_folders,
    too_few_images_to_hold_out,
    idx_without_labels,
    idx_cut_short,
    compressed_idx_cut_short,
    idx_that_is_none,
    more_idx_images_than_labels,
    idx_that_claims_more_than_memory,
    idx_with_images_without_pixels,
    idx_with_long_images,
    compressed_idx_that_expands_without_end,
    idx_folder,
    idx_pipe,
  ],
)
def test_sources_that_are_refused(tmp_path, write_source):
  message = write_source(tmp_path / "source")
  with pytest.raises(UserError, match=message):
    read_source(tmp_path / "source")


@pytest.mark.parametrize(
  ("names", "message"),
  [
    # CPython has one object for each text of one character.
    (["a", "a", *"bcdefghi"], r"--class_names has two classes named 'a': rename"),
    (["bag", "bag", *"bcdefghi"], r"--class_names has two classes named 'bag': rename"),
    (["a b", "a  b", *"cdefghij"], r"two classes named 'a  b', which differ only in spaces"),
    (list("ab"), "class_names has only 2 names"),
  ],
)
def test_names_of_idx_classes_that_are_refused(tmp_path, names, message):
  image_files.write_idx_source(tmp_path / "source")
  with pytest.raises(UserError, match=message):
    read_source(tmp_path / "source", class_names=names)


def test_files_that_are_no_images_are_counted(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  for name in ("a.txt", "b.TXT", "c.bmp", ".hidden"):
    (source / "ant" / name).write_text("")
  notes = read_source(source, 0.3).notes
  assert "ignored: 2 files ending in .txt" in notes
  assert "ignored: 1 file ending in .bmp" in notes


def test_idx_files_need_a_name_for_each_label(tmp_path):
  root = image_files.write_idx_source(tmp_path / "source")
  names = read_source(root).class_names
  with pytest.raises(UserError, match=f"has label {len(names) - 1}, but class_names has only"):
    read_source(root, class_names=names[:-1])
