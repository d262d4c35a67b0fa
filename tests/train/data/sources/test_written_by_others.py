"""Reads files that the libraries which define the formats have written.

`written_by_others.tar.xz` has six images of one color, 6 x 5 pixels, PNG, four of them for
training, written on 2026-11-29 by webdataset 1.0.2 (`TarWriter`, with the label as `cls`), by
datasets 5.2.0 (`Dataset.to_parquet`, with the features `Image` and `ClassLabel`) and by
tensorflow_datasets 4.9.10 (a `GeneratorBasedBuilder` with `file_format="array_record"`).
"""

import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.train.data import image_files
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source

ARCHIVE = pathlib.Path(__file__).with_name("written_by_others.tar.xz")
CLASS_NAMES = ("ant", "bee", "cat")


def color(number):
  """Returns the color of image `number`, uint8 [3]."""
  return np.random.default_rng(number).integers(0, 256, (6, 5, 3)).astype(np.uint8)[0, 0]


@pytest.mark.parametrize(
  ("folder", "class_names"),
  [
    ("webdataset", ("0", "1", "2")),
    ("datasets", CLASS_NAMES),
    ("tensorflow_datasets/insects/1.0.0", CLASS_NAMES),
  ],
)
def test_files_of_the_original_writers(tmp_path, folder, class_names):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter="data")
  source = read_source(tmp_path / folder)
  assert source.class_names == class_names
  write_dataset(tmp_path / "data", source)
  for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
    found = set()
    for record in image_files.read_all(tmp_path / "data", split):
      pixels = np.asarray(Image.open(io.BytesIO(record.image)))
      assert pixels.shape == (6, 5, 3)
      assert (pixels == pixels[0, 0]).all()
      found.add((record.labels, tuple(pixels[0, 0])))
    assert found == {((number % 3,), tuple(color(number))) for number in numbers}
