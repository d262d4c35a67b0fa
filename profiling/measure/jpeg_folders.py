"""Provides the images on which input pipelines are compared: folders of JPEGs, and a data set."""

import contextlib
import io
import os
import pathlib
import random

from PIL import Image

from nfnet.errors import UserError
from train.data import dataset_writer, image_sources

_GENERATED_SIZE = (500, 375)
# 111 kB on average. ImageNet's training images have 110 kB, most of them about 500 x 375 pixels.
_GENERATED_QUALITY = 98


def generate_images(folder: pathlib.Path, count: int) -> None:
  """Writes JPEGs of ImageNet's size, cut from scikit-learn's photographs, always the same ones.

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    import sklearn.datasets
  except ImportError as error:
    raise UserError(
      "scikit-learn, whose photographs are the default images, is not installed: install it, or "
      "name images with --images=FOLDER"
    ) from error
  photographs = [
    Image.open(path).convert("RGB")
    for path in sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
  ]
  generator = random.Random(0)
  width, height = _GENERATED_SIZE
  for number in range(count):
    photograph = photographs[number % len(photographs)]
    left = generator.randrange(photograph.width - width + 1)
    top = generator.randrange(photograph.height - height + 1)
    window = photograph.crop((left, top, left + width, top + height))
    window.save(folder / f"{number:05d}.jpg", quality=_GENERATED_QUALITY, subsampling="4:2:0")


def link_images(folder: pathlib.Path, source: str) -> None:
  """Makes links in `folder` to the JPEGs anywhere below the folder `source`.

  Raises:
    UserError: there are no JPEGs.
  """
  paths = sorted(
    path for path in pathlib.Path(source).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
  )
  if not paths:
    raise UserError(f"--images={source} holds no *.jpg or *.jpeg")
  for number, path in enumerate(paths):
    (folder / f"{number:07d}.jpg").symlink_to(path.resolve())


def prepare(images: pathlib.Path, out: pathlib.Path) -> None:
  """Prepares this project's data set from a folder that holds train/CLASS and val/CLASS."""
  with contextlib.redirect_stderr(io.StringIO()):
    dataset_writer.write_dataset(
      out, image_sources.read_source(images), workers=os.cpu_count() or 1
    )
