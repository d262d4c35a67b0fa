"""Small real image files and data sets for the tests of the input side."""

import gzip
import hashlib
import io
import json
import pathlib
import struct

import numpy as np
from PIL import Image

from train.data import dataset_writer
from train.data.manifest import (
  MANIFEST_NAME,
  Manifest,
  Split,
  describe_file,
  load_manifest,
  save_manifest,
)
from train.data.record_files import Record, encode_record, open_writer
from train.data.record_reader import RecordReader
from train.data.sources.images import Pixels
from train.data.sources.source import Source

CLASS_NAMES = ("ant", "bee", "cat")


def noise(number, height=20, width=24):
  """Returns noise, uint8 [height, width, 3], that differs by number."""
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


def write_dataset(out, train, validation=1, files=None, seed=0):
  """Writes a data set of colored noise; image i of a split has the class i modulo 3."""
  splits = {
    split: tuple(
      Pixels(f"{split}/{index:05d}", (index % 3,), noise(index)[:, :, 0]) for index in range(count)
    )
    for split, count in (("train", train), ("validation", validation))
  }
  source = Source(CLASS_NAMES, splits)
  return dataset_writer.write_dataset(out, source, files_per_split=files, seed=seed)


def write_records(out, images_by_split, labels_per_record_max=1):
  """Writes one record file per split of (image bytes, labels), good or bad, and the manifest."""
  out = pathlib.Path(out)
  out.mkdir(parents=True)
  splits = {}
  for split, images in images_by_split.items():
    file = f"{split}.array_record"
    with open_writer(out / file) as writer:
      for index, (image, labels) in enumerate(images):
        writer.write(encode_record(Record(index, labels, image)))
    record_file = describe_file(out, file, len(images))
    splits[split] = Split(records=len(images), record_files=(record_file,))
  manifest = Manifest(
    class_names=CLASS_NAMES, labels_per_record_max=labels_per_record_max, splits=splits
  )
  save_manifest(out, manifest)
  return manifest


def read_all(folder, split):
  """Returns all records of a split, in order."""
  reader = RecordReader(folder, load_manifest(folder).splits[split])
  return [reader.read(index) for index in range(len(reader))]


def edit_manifest(folder, edit):
  """Calls `edit` with the fields of a data set's manifest and saves what it has made of them."""
  path = pathlib.Path(folder, MANIFEST_NAME)
  fields = json.loads(path.read_text())
  edit(fields)
  path.write_text(json.dumps(fields))


TEN_IMAGES = [(encode(noise(index), "PNG"), (index % 3,)) for index in range(10)]


def write_idx(path, values):
  """Writes an idx file of uint8 values, compressed if the path ends in .gz."""
  header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
  content = header + values.tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_source(folder, ending="", train=12, held_out=5):
  """Writes the four files of an MNIST-like collection with random pixels."""
  generator = np.random.default_rng(0)
  folder.mkdir()
  for prefix, count in (("train", train), ("t10k", held_out)):
    images = generator.integers(0, 256, (count, 28, 28), np.uint8)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(count, dtype=np.uint8) % 10)
  return folder


def file_hashes(folder):
  """Returns the SHA-256 of every file below a folder, by its path in the folder."""
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


JPEG = encode(noise(0), "JPEG")
BAD_IMAGES = {
  "empty": b"",
  "cut short": JPEG[: len(JPEG) // 2],
  "garbage": b"\xff\xd8\xff" + bytes(100),
  "gif": encode(noise(0), "GIF"),
}
