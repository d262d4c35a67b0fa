"""Defines the input pipelines that are compared: this project's and those of its rivals.

All produce the same: batches of uint8 [batch, pixels, pixels, 3] from JPEGs on disk, each image
cropped at random (area 8 to 100 %, aspect ratio 3:4 to 4:3), resized by bicubic interpolation and
mirrored with probability 1/2. Every pipeline imports what it needs when it runs, and the module
itself imports the standard library only, so that an interpreter without this project's packages can
run the rivals.
"""

import argparse
import itertools
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any

OURS = "this project"
OURS_IN_THREADS = "this project, in threads"
TF_DATA_ANTIALIASED = "tf.data, antialiased"

_AREA_MIN = 0.08
_ASPECT_RATIO_MAX = 4 / 3
_SEED = 0


def this_project(options: argparse.Namespace, *, workers: int) -> Iterator[Any]:
  """Yields the batches of training itself, from a prepared data set."""
  from train.config import experiment
  from train.data.batches import train_batches
  from train.data.dataset import class_names

  settings = experiment.Data(
    path=options.data,
    num_classes=len(class_names(experiment.Data(path=options.data))),
    batch_size=options.batch_size,
    train_pixels=options.pixels,
    crop_area_min=_AREA_MIN,
    crop_aspect_ratio_max=_ASPECT_RATIO_MAX,
    workers=workers,
  )
  with train_batches(settings, _SEED) as batches:
    for batch in batches:
      yield batch["image"]


def tf_data(options: argparse.Namespace, *, antialias: bool) -> Iterator[Any]:
  """Yields batches of `tf.data`, which decodes no more than the crop, with one thread per core."""
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(options.cores)
  tf.config.threading.set_inter_op_parallelism_threads(options.cores)

  def load(path):
    encoded = tf.io.read_file(path)
    start, size, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(encoded),
      tf.zeros([0, 0, 4]),
      min_object_covered=0.0,
      aspect_ratio_range=(1 / _ASPECT_RATIO_MAX, _ASPECT_RATIO_MAX),
      area_range=(_AREA_MIN, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([start[0], start[1], size[0], size[1]])
    image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(
      image, [options.pixels, options.pixels], method="bicubic", antialias=antialias
    )
    return tf.saturate_cast(tf.image.random_flip_left_right(image), tf.uint8)

  files = tf.data.Dataset.from_tensor_slices(_files(options)).repeat()
  dataset = files.map(load, num_parallel_calls=options.cores).batch(options.batch_size).prefetch(2)
  settings = tf.data.Options()
  settings.threading.private_threadpool_size = options.cores
  settings.threading.max_intra_op_parallelism = 1
  for batch in dataset.with_options(settings):
    yield batch.numpy()


def timm_loader(options: argparse.Namespace) -> Iterator[Any]:
  """Yields batches of timm's data set and transforms in PyTorch's loader, one worker per core."""
  import timm.data
  import timm.data.loader
  import torch

  # timm normalizes in its prefetcher, on a device. Without a prefetcher, nothing is normalized.
  transform = timm.data.create_transform(
    options.pixels,
    is_training=True,
    use_prefetcher=True,
    scale=(_AREA_MIN, 1.0),
    ratio=(1 / _ASPECT_RATIO_MAX, _ASPECT_RATIO_MAX),
    color_jitter=0.0,
    interpolation="bicubic",
  )
  folder = pathlib.Path(options.images).parent
  loader = torch.utils.data.DataLoader(
    timm.data.ImageDataset(str(folder), transform=transform),
    batch_size=options.batch_size,
    shuffle=True,
    num_workers=options.cores,
    collate_fn=timm.data.loader.fast_collate,
    persistent_workers=True,
    drop_last=True,
  )
  while True:
    for images, _ in loader:
      yield images.permute(0, 2, 3, 1)


def pillow(options: argparse.Namespace) -> Iterator[Any]:
  """Yields batches of Pillow and NumPy in a loop."""
  import numpy as np
  from PIL import Image

  generator = random.Random(_SEED)

  def load(path: str) -> np.ndarray:
    with Image.open(path) as image:
      box = random_box(image.width, image.height, generator)
      size = (options.pixels, options.pixels)
      image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=box)
    if generator.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)

  paths = itertools.cycle(_files(options))
  while True:
    yield np.stack([load(path) for path in itertools.islice(paths, options.batch_size)])


PIPELINES = {
  OURS: lambda options: this_project(options, workers=options.cores),
  OURS_IN_THREADS: lambda options: this_project(options, workers=0),
  "tf.data": lambda options: tf_data(options, antialias=False),
  TF_DATA_ANTIALIASED: lambda options: tf_data(options, antialias=True),
  "timm": timm_loader,
  "Pillow": pillow,
}
"""Pipelines by name; each yields batches without end."""

PACKAGES = ("grain", "simplejpeg", "cykooz-resizer", "tensorflow", "torch", "timm", "Pillow")
"""Packages whose versions are reported where they are installed."""


def _files(options: argparse.Namespace) -> list[str]:
  return sorted(str(path) for path in pathlib.Path(options.images).iterdir())


def random_box(width: int, height: int, generator: random.Random) -> tuple[int, int, int, int]:
  """Draws left, top, right and bottom of a crop as `train.data.augmentation` does.

  The function is repeated here for interpreters that have only the standard library.
  """
  for _ in range(10):
    area = width * height * generator.uniform(_AREA_MIN, 1)
    ratio = _ASPECT_RATIO_MAX ** generator.uniform(-1, 1)
    across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    if across <= width and down <= height:
      left, top = generator.randint(0, width - across), generator.randint(0, height - down)
      return left, top, left + across, top + down
  return 0, 0, width, height
