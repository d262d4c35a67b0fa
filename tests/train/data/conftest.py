"""A small data set on disk, whose manifest and record files tests damage."""

import pytest

from tests.train.data import image_files


@pytest.fixture
def folder(tmp_path):
  """Writes a data set of `image_files.TEN_IMAGES` and returns its folder."""
  images = image_files.TEN_IMAGES
  image_files.write_records(tmp_path / "data", {"train": images, "validation": images[:4]})
  return tmp_path / "data"
