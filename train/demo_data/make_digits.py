"""Turns scikit-learn's handwritten digits into a data set: 1,797 real scans of 8x8 pixels.

    python -m train.demo_data.make_digits --out=DIR

1,000 of them, by a seeded draw, are for training, 797 are held out. Takes about a second.
"""

import os

import numpy as np
from absl import flags

from nfnet.errors import UserError, run_main
from train import dataset_writer, image_sources

TRAIN_IMAGES = 1000
DRAW_SEED = 0

_INK_MAX = 16


def source() -> image_sources.Source:
  """The images; raises UserError."""
  try:
    from sklearn import datasets
  except ImportError as error:
    raise UserError("the digits are part of scikit-learn: pip install scikit-learn") from error

  digits = datasets.load_digits()
  pixels = np.round(digits.images * (255 / _INK_MAX)).astype(np.uint8)
  images = [
    image_sources.GreyPixels(f"{index:04d}", (int(label),), image)
    for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
  ]
  order = np.random.default_rng(DRAW_SEED).permutation(len(images))
  splits = {
    image_sources.TRAIN: tuple(images[index] for index in sorted(order[:TRAIN_IMAGES])),
    image_sources.VALIDATION: tuple(images[index] for index in sorted(order[TRAIN_IMAGES:])),
  }
  class_names = tuple(str(name) for name in digits.target_names)
  return image_sources.Source(class_names, splits)


def make(out: str | os.PathLike[str]) -> None:
  """Writes the data set; raises UserError."""
  dataset_writer.write_dataset(out, source())


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", None, "Folder to write.")

  def main(unused_arguments: list[str]) -> None:
    """Makes the data set that the flag names."""
    if not _OUT.value:
      raise UserError("--out=DIR is needed")
    make(_OUT.value)

  run_main(main)
