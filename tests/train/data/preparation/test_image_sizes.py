import numpy as np

from tests.train.data import image_files
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source
from train.data.preparation.image_sizes import (
  NO_SIDES,
  SIDES_BYTES,
  describe_histogram,
  encode_sides,
  image_sizes,
)


def test_sizes_of_images_that_were_not_left_out():
  sides = [encode_sides(100, 50 + index) for index in range(101)] + [NO_SIDES] * 50
  assert {len(one) for one in sides} == {SIDES_BYTES}
  sizes = image_sizes(b"".join(sides))
  assert sizes.longer_side == (100, 100, 100, 100, 125, 145, 150)
  assert sizes.shorter_side == (50, 55, 75, 100, 100, 100, 100)
  assert sizes.pixels[0] == 5000
  assert sizes.shorter_side_counts == (0, 14, 87, 0, 0, 0, 0)
  assert describe_histogram(sizes) == "32 to 63: 13.9%, 64 to 127: 86.1%"


def test_all_sides_that_images_have():
  sizes = image_sizes(encode_sides(65_535, 1) + encode_sides(65_535, 65_535))
  assert sizes.pixels[-1] == 65_535**2
  assert sizes.shorter_side_counts == (1, 0, 0, 0, 0, 0, 1)


def test_the_manifest_has_the_sizes_of_the_files(tmp_path):
  root = image_files.write_class_folders(tmp_path / "source" / "train", 4, height=30, width=40)
  image_files.write_class_folders(tmp_path / "source" / "val", 2)
  # It is decoded at half of its sides.
  large = image_files.Image.fromarray(np.zeros((4000, 5000), np.uint8))
  (root / "ant" / "large.jpg").write_bytes(image_files.encode(large, "JPEG"))
  sizes = write_dataset(tmp_path / "data", read_source(tmp_path / "source")).image_sizes
  assert sizes["train"].shorter_side == (30, 30, 30, 30, 30, 30, 4000)
  assert sizes["train"].longer_side[-1] == 5000
  assert sizes["validation"].shorter_side == (20,) * 7
