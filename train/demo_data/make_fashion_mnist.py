"""Makes `train/demo_data/fashion_mnist/`, the part of Fashion-MNIST that ships with this project.

    python -m train.demo_data.make_fashion_mnist --source=DIR --out=DIR

The source is the folder with the four original idx files (Debian package dataset-fashion-mnist).
The held-out split is the whole original test set; the training split is a seeded draw of the same
number of images of each class from the original training set. The pixels are unchanged.
"""

import collections
import dataclasses
import pathlib

import numpy as np

from nfnet.command_line import run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from train.data import dataset_writer
from train.data.preparation.class_folders import TRAIN
from train.data.sources.idx_files import read_idx_source
from train.data.sources.source import SourceImage

CLASS_NAMES = (
  "T-shirt/top",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
)
TRAIN_IMAGES_PER_CLASS = 1000
DRAW_SEED = 0

# A PNG that only filters its rows (level 0), which ArrayRecord then compresses over many images at
# once, takes 393 bytes per image. In records of their own, a lossless WebP takes 557 bytes and a
# PNG 623, of which ArrayRecord adds a hundred.
PNG_COMPRESSION_LEVEL = 0
WRITER_OPTIONS = "group_size:512,brotli:11"

_LICENSE = """\
The images in this folder are part of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist), stored in another format, pixels unchanged.

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def make(source: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the data set and its license.

  Args:
    source: folder with the original idx files.
    out: folder to write.

  Raises:
    UserError: a file is missing or damaged, or the folder cannot be written to.
  """
  original = read_idx_source(source, CLASS_NAMES, PNG_COMPRESSION_LEVEL)
  chosen = draw_balanced(original.splits[TRAIN])
  dataset_writer.write_dataset(
    out,
    dataclasses.replace(original, splits={**original.splits, TRAIN: chosen}),
    writer_options=WRITER_OPTIONS,
  )
  (out / "LICENSE").write_text(_LICENSE)


def draw_balanced(
  images: tuple[SourceImage, ...],
) -> tuple[SourceImage, ...]:
  """Draws `TRAIN_IMAGES_PER_CLASS` images of each class and keeps their order."""
  taken: collections.Counter[tuple[int, ...]] = collections.Counter()
  chosen = []
  for index in np.random.default_rng(DRAW_SEED).permutation(len(images)):
    labels = images[index].labels
    if taken[labels] < TRAIN_IMAGES_PER_CLASS:
      taken[labels] += 1
      chosen.append(int(index))
  return tuple(images[index] for index in sorted(chosen))


if __name__ == "__main__":
  _SOURCE = define_path("source", None, "Folder with the original idx files.", use="read")
  _OUT = define_path("out", None, "Folder to write.", use="write folder")

  def main(unused_arguments: list[str]) -> None:
    """Makes the data set that the flags name."""
    if not _SOURCE.value or not _OUT.value:
      raise UserError("--source=DIR and --out=DIR are needed")
    make(pathlib.Path(_SOURCE.value), pathlib.Path(_OUT.value))

  run_main(main, prints_result=False)
