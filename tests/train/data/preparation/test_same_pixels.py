import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.data import image_files
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source
from train.data.manifest import IMAGES_IN_TWO_SPLITS_NAME, REPEATED_IMAGES_NAME, load_manifest
from train.data.preparation.same_pixels import (
  find_images_in_two_splits,
  find_repeated_images,
  pixel_digest,
)


@pytest.fixture
def source(tmp_path):
  """Writes splits that share no image."""
  image_files.write_class_folders(tmp_path / "source" / "train", 8)
  image_files.write_class_folders(tmp_path / "source" / "val", 4, height=21)
  return tmp_path / "source"


@pytest.mark.parametrize("workers", [0, 1])
def test_images_in_two_splits_are_listed(tmp_path, source, workers):
  assert write_dataset(tmp_path / "none", read_source(source)).images_in_two_splits == 0
  # A copy, a copy in another class under another name, and the same pixels in another format.
  png = (source / "train" / "bee" / "0001.png").read_bytes()
  (source / "val" / "bee" / "copy.png").write_bytes(png)
  (source / "val" / "cat" / "other.jpg").write_bytes(png)
  pixels = image_files.noise(1)
  (source / "val" / "ant" / "a.webp").write_bytes(
    image_files.encode(pixels, "WEBP", lossless=True, exact=True)
  )
  manifest = write_dataset(tmp_path / "data", read_source(source), workers=workers)
  assert manifest.images_in_two_splits == 3
  assert json.loads((tmp_path / "data" / IMAGES_IN_TWO_SPLITS_NAME).read_text()) == [
    ["val/ant/a.webp", "train/ant/0001.png"],
    ["val/bee/copy.png", "train/bee/0001.png"],
    ["val/cat/other.jpg", "train/bee/0001.png"],
  ]
  assert load_manifest(tmp_path / "data") == manifest


def test_repeated_images_of_a_split_are_listed(tmp_path, source):
  manifest = write_dataset(tmp_path / "none", read_source(source))
  assert (manifest.repeated_images, manifest.repeated_in_other_classes) == (0, 0)
  assert not (tmp_path / "none" / REPEATED_IMAGES_NAME).exists()
  train = source / "train"
  png = (train / "bee" / "0001.png").read_bytes()
  (train / "bee" / "copy.png").write_bytes(png)
  (train / "cat" / "copy.jpg").write_bytes(png)
  (train / "ant" / "copy.webp").write_bytes((train / "ant" / "0002.webp").read_bytes())
  for number in range(2):
    (train / "ant" / f"bad{number}.jpg").write_bytes(b"")
  listed = read_source(source)
  manifest = write_dataset(tmp_path / "data", listed, skip_bad_images=True)
  assert (manifest.repeated_images, manifest.repeated_in_other_classes) == (3, 1)
  assert json.loads((tmp_path / "data" / REPEATED_IMAGES_NAME).read_text()) == [
    [["train/ant/0002.webp", ["ant"]], ["train/ant/copy.webp", ["ant"]]],
    [
      ["train/bee/0001.png", ["bee"]],
      ["train/bee/copy.png", ["bee"]],
      ["train/cat/copy.jpg", ["cat"]],
    ],
  ]
  assert load_manifest(tmp_path / "data") == manifest


@given(st.lists(st.integers(0, 4), max_size=12))
def test_groups_are_those_of_a_comparison_one_by_one(own):
  names = [f"{index:02d}" for index in range(len(own))]
  labels = [(index,) for index in range(len(own))]
  found = find_repeated_images(names, labels, np.array(own, np.uint64).tobytes())
  expected = [
    tuple((names[i], labels[i]) for i, one in enumerate(own) if one == value)
    for value in set(own)
    if value and own.count(value) > 1
  ]
  assert found == tuple(sorted(expected))


def test_images_that_were_left_out_are_not_the_same(tmp_path, source):
  for split in ("train", "val"):
    (source / split / "ant" / "bad.jpg").write_bytes(b"")
  manifest = write_dataset(tmp_path / "data", read_source(source), skip_bad_images=True)
  assert manifest.images_in_two_splits == 0


def test_the_digest_depends_on_pixels_and_shape_alone():
  pixels = image_files.noise(0, 6, 8)
  same = np.asfortranarray(pixels)
  others = [pixels.reshape(8, 6, 3), pixels[:, ::-1], pixels ^ np.uint8(1), pixels[1:]]
  assert pixel_digest(same) == pixel_digest(pixels)
  assert len({pixel_digest(other) for other in (pixels, *others)}) == 5


values = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(st.fixed_dictionaries({"train": values, "validation": values, "test": values}))
def test_pairs_are_those_of_a_comparison_one_by_one(splits):
  names = {split: [f"{split}{i}" for i in range(len(own))] for split, own in splits.items()}
  digests = {split: np.array(own, np.uint64).tobytes() for split, own in splits.items()}
  found = find_images_in_two_splits(names, digests)
  expected = [
    (names[later][i], names[earlier][splits[earlier].index(value)])
    for earlier, later in itertools.combinations(splits, 2)
    for i, value in enumerate(splits[later])
    if value and value in splits[earlier]
  ]
  assert found == tuple(sorted(expected))
