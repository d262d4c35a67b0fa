"""Times one input pipeline; `profiling.input_pipeline` runs it in a process of its own.

    python -m profiling.measure.input_worker --pipeline=tf.data --images=FOLDER --cores=2

All pipelines make the same: batches of uint8 [batch, pixels, pixels, 3] out of JPEGs on disk, each
image cropped at random (area 8 to 100 %, aspect ratio 3:4 to 4:3), resized by bicubic
interpolation and mirrored half of the time. Prints one line of JSON. Imports what the pipeline
needs and no more, so that an interpreter without this project's packages can run the others.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import random
import time
from collections.abc import Iterator
from typing import Any

AREA_MIN = 0.08
ASPECT_RATIO_MAX = 4 / 3
_WARMUP_BATCHES = 4
_SEED = 0


def this_project(options: argparse.Namespace, *, workers: int) -> Iterator[Any]:
  """The batches of training itself, from a prepared data set."""
  from train.config import experiment
  from train.data.batches import train_batches
  from train.data.dataset import class_names

  settings = experiment.Data(
    path=options.data,
    num_classes=len(class_names(experiment.Data(path=options.data))),
    batch_size=options.batch_size,
    train_pixels=options.pixels,
    crop_area_min=AREA_MIN,
    crop_aspect_ratio_max=ASPECT_RATIO_MAX,
    workers=workers,
  )
  with train_batches(settings, _SEED) as batches:
    for batch in batches:
      yield batch["image"]


def tf_data(options: argparse.Namespace, *, antialias: bool) -> Iterator[Any]:
  """`tf.data`: decodes no more than the crop, with a thread a core."""
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
      aspect_ratio_range=(1 / ASPECT_RATIO_MAX, ASPECT_RATIO_MAX),
      area_range=(AREA_MIN, 1.0),
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
  """timm's data set, transformations and collation in PyTorch's loader, with a worker a core."""
  import timm.data
  import timm.data.loader
  import torch

  # Without its prefetcher, which would normalize on a device, and so without any normalization.
  transform = timm.data.create_transform(
    options.pixels,
    is_training=True,
    use_prefetcher=True,
    scale=(AREA_MIN, 1.0),
    ratio=(1 / ASPECT_RATIO_MAX, ASPECT_RATIO_MAX),
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
  """Pillow and NumPy in a loop."""
  import numpy as np
  from PIL import Image

  generator = random.Random(_SEED)

  def load(path: str) -> np.ndarray:
    with Image.open(path) as image:
      box = _random_box(image.width, image.height, generator)
      size = (options.pixels, options.pixels)
      image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=box)
    if generator.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)

  paths = itertools.cycle(_files(options))
  while True:
    yield np.stack([load(path) for path in itertools.islice(paths, options.batch_size)])


PIPELINES = {
  "this project": lambda options: this_project(options, workers=options.cores),
  "this project, in threads": lambda options: this_project(options, workers=0),
  "tf.data": lambda options: tf_data(options, antialias=False),
  "tf.data, antialiased": lambda options: tf_data(options, antialias=True),
  "timm": timm_loader,
  "Pillow": pillow,
}
"""By name; each yields batches without an end."""

PACKAGES = ("grain", "simplejpeg", "cykooz-resizer", "tensorflow", "torch", "timm", "Pillow")
"""Whose versions are told where they are installed."""


def _files(options: argparse.Namespace) -> list[str]:
  return sorted(str(path) for path in pathlib.Path(options.images).iterdir())


def _random_box(width: int, height: int, generator: random.Random) -> tuple[int, int, int, int]:
  """The crop of `train.data.crops`, in the standard library's words."""
  for _ in range(10):
    area = width * height * generator.uniform(AREA_MIN, 1)
    ratio = ASPECT_RATIO_MAX ** generator.uniform(-1, 1)
    across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    if across <= width and down <= height:
      left, top = generator.randint(0, width - across), generator.randint(0, height - down)
      return left, top, left + across, top + down
  return 0, 0, width, height


def measure(options: argparse.Namespace) -> dict[str, Any]:
  """Seconds that batches take once the pipeline runs, by the clock and of all its processes."""
  cores = sorted(os.sched_getaffinity(0))[: options.cores]
  os.sched_setaffinity(0, cores)
  batches = PIPELINES[options.pipeline](options)
  for _ in range(_WARMUP_BATCHES):
    batch = next(batches)
  expected = (options.batch_size, options.pixels, options.pixels, 3)
  if tuple(batch.shape) != expected or "uint8" not in str(batch.dtype):
    raise ValueError(f"a batch is {batch.dtype} {tuple(batch.shape)}, not uint8 {expected}")
  cpu_started, started = cpu_seconds(), time.perf_counter()
  for _ in range(options.batches):
    next(batches)
  seconds, used = time.perf_counter() - started, cpu_seconds() - cpu_started
  batches.close()
  return {
    "images": options.batches * options.batch_size,
    "seconds": seconds,
    "cpu_seconds": used,
    "cores": 1 if options.pipeline == "Pillow" else len(cores),
    "versions": _versions(),
  }


def cpu_seconds() -> float:
  """CPU time that this process and its descendants have used."""
  ticks_by_pid, parents = {}, {}
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      # A name in parentheses may hold anything.
      fields = path.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    pid = int(path.parent.name)
    parents[pid] = int(fields[1])
    # Of itself in user and kernel mode, of its children that have ended in both.
    ticks_by_pid[pid] = sum(map(int, fields[11:15]))
  ticks = 0
  for pid, used in ticks_by_pid.items():
    ancestor = pid
    while ancestor != os.getpid() and ancestor in parents:
      ancestor = parents[ancestor]
    if ancestor == os.getpid():
      ticks += used
  return ticks / os.sysconf("SC_CLK_TCK")


def _versions() -> dict[str, str]:
  import importlib.metadata

  found = {"Python": platform.python_version()}
  for package in PACKAGES:
    for name in (package, f"{package}-cpu"):
      try:
        found[package] = importlib.metadata.version(name)
      except importlib.metadata.PackageNotFoundError:
        continue
  return found


def main() -> None:
  """Prints the measurement that the arguments ask for."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--pipeline", required=True, choices=PIPELINES)
  parser.add_argument("--images", required=True, help="folder of JPEGs")
  parser.add_argument("--data", help="the same, prepared (for this project)")
  parser.add_argument("--cores", type=int, required=True)
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--batches", type=int, default=16)
  parser.add_argument("--pixels", type=int, default=224)
  print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
  main()
