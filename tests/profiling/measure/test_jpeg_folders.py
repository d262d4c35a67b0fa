import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from profiling.measure.jpeg_folders import generate_images, link_images


def test_a_folder_without_images(tmp_path):
  with pytest.raises(UserError, match=r"holds no \*\.jpg"):
    link_images(tmp_path, str(tmp_path))


def test_generated_images_have_imagenets_size(tmp_path):
  generate_images(tmp_path, 16)
  paths = sorted(tmp_path.iterdir())
  assert len({path.read_bytes() for path in paths}) == 16
  for path in paths:
    with Image.open(path) as image:
      assert image.size == (500, 375)
  assert np.mean([path.stat().st_size for path in paths]) == pytest.approx(110e3, rel=0.05)
