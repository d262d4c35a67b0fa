"""Turns scikit-learn's handwritten digits into a data set: 1,797 real scans of 8x8 pixels.

    python -m train.demo_data.make_digits --out=DIR [--train_images=200]

The training split is a seeded draw of 1,000 of them, or of as many as --train_images says; the
others are held out. The script takes about a second.
"""

import os

import numpy as np
from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from train.data import dataset_writer
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.sources.images import Pixels
from train.data.sources.source import Source

TRAIN_IMAGES = 1000
DRAW_SEED = 0

_INK_MAX = 16


def source(train_images: int = TRAIN_IMAGES) -> Source:
  """Returns the images.

  Args:
    train_images: number of training images, out of 1,797 in all. A smaller number takes a subset of
      the images that a larger number takes.

  Raises:
    UserError: scikit-learn is not installed, or too many images are asked for.
  """
  try:
    from sklearn import datasets
  except ImportError as error:
    raise UserError("the digits are part of scikit-learn: pip install scikit-learn") from error

  digits = datasets.load_digits()
  if not 0 < train_images < len(digits.images):
    raise UserError(
      f"--train_images={train_images}: must be 1 to {len(digits.images) - 1}, so that some are "
      "held out"
    )
  pixels = np.round(digits.images * (255 / _INK_MAX)).astype(np.uint8)
  images = [
    Pixels(f"{index:04d}", (int(label),), image)
    for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
  ]
  order = np.random.default_rng(DRAW_SEED).permutation(len(images))
  splits = {
    TRAIN: tuple(images[index] for index in sorted(order[:train_images])),
    VALIDATION: tuple(images[index] for index in sorted(order[train_images:])),
  }
  class_names = tuple(str(name) for name in digits.target_names)
  return Source(class_names, splits)


def make(out: str | os.PathLike[str], *, train_images: int = TRAIN_IMAGES) -> None:
  """Writes the data set.

  Args:
    out: folder to write.
    train_images: number of training images, as for `source`.

  Raises:
    UserError: scikit-learn is not installed, too many images are asked for, or the folder cannot be
      written to.
  """
  dataset_writer.write_dataset(out, source(train_images))


if __name__ == "__main__":
  _OUT = define_path("out", None, "Folder to write.", use="write folder")
  _TRAIN_IMAGES = flags.DEFINE_integer(
    "train_images", TRAIN_IMAGES, "Training images; the others are held out."
  )

  def main(unused_arguments: list[str]) -> None:
    """Makes the data set that the flag names."""
    if not _OUT.value:
      raise UserError("--out=DIR is needed")
    make(_OUT.value, train_images=_TRAIN_IMAGES.value)

  run_main(main, prints_result=False)
