"""Real image files and data sets, small, for the tests of the input side."""

import io
import pathlib

import numpy as np
from PIL import Image

from train.data import dataset_writer, image_sources, records

CLASS_NAMES = ("ant", "bee", "cat")


def noise(number, height=20, width=24):
  """Returns uint8 [height, width, 3] that differs by number."""
  return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def encode(pixels, image_format, **options):
  """Returns the bytes of an image file."""
  encoded = io.BytesIO()
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  image.save(encoded, image_format, **options)
  return encoded.getvalue()


def write_class_folders(root, images_per_class, class_names=CLASS_NAMES, **noise_options):
  """Writes root/CLASS/*.jpg, *.png and *.webp, in turn."""
  number = 0
  for name in class_names:
    folder = pathlib.Path(root, name)
    folder.mkdir(parents=True)
    for position in range(images_per_class):
      image_format, suffix = (("JPEG", "JPEG"), ("PNG", "png"), ("WEBP", "webp"))[position % 3]
      path = folder / f"{position:04d}.{suffix}"
      path.write_bytes(encode(noise(number, **noise_options), image_format))
      number += 1
  return pathlib.Path(root)


def write_dataset(out, train, validation=1, shards=None, seed=0):
  """Writes a data set of colored noise; image i of a split has the class i modulo 3."""
  splits = {
    split: tuple(
      image_sources.GreyPixels(f"{split}/{index:05d}", (index % 3,), noise(index)[:, :, 0])
      for index in range(count)
    )
    for split, count in (("train", train), ("validation", validation))
  }
  source = image_sources.Source(CLASS_NAMES, splits)
  return dataset_writer.write_dataset(out, source, shards=shards, seed=seed)


def write_records(out, images_by_split, labels_per_record_max=1):
  """Writes one shard a split of (image bytes, labels), good or bad, with a manifest that fits."""
  out = pathlib.Path(out)
  out.mkdir(parents=True)
  splits = {}
  for split, images in images_by_split.items():
    file = f"{split}.array_record"
    with dataset_writer.open_writer(out / file, records.WRITER_OPTIONS) as writer:
      for index, (image, labels) in enumerate(images):
        writer.write(records.encode_record(records.Record(index, labels, image)))
    shard = records.describe_shard(out, file, len(images))
    splits[split] = records.Split(records=len(images), shards=(shard,))
  manifest = records.Manifest(
    class_names=CLASS_NAMES, labels_per_record_max=labels_per_record_max, splits=splits
  )
  records.save_manifest(out, manifest)
  return manifest
