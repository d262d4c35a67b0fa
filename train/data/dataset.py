"""The prepared data set that a configuration names: its classes, its sizes, its decoders.

A data set in a bucket is copied to this machine, and read there. Every host needs all record files
of a split, because each takes examples from all over the shuffled order.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from nfnet.errors import UserError, format_count
from nfnet.system.paths import is_in_bucket
from train.config.experiment import Data
from train.data.examples import Decoder
from train.data.manifest import MANIFEST_NAME, Manifest, Split, check_file_sizes, load_manifest
from train.data.record_files import BadRecordError
from train.data.record_reader import RecordReader


@functools.cache
def local_folder(path: str) -> pathlib.Path:
  """Returns the folder on this machine for a data set, with its manifest.

  For a data set in a bucket, that is a folder of the cache, whose record files `fetch` copies. A
  process reads the manifest once, so that a data set cannot change while it runs.

  Args:
    path: folder of the data set, here or in a bucket.

  Raises:
    UserError: the bucket cannot be read, or the cache cannot be written.
  """
  if not is_in_bucket(path):
    return pathlib.Path(path)
  # Importing TensorStore takes a while, and few need it.
  from nfnet.buckets.verified_copies import folder_of

  return folder_of(path, MANIFEST_NAME)


def check(data: Data, *splits: str) -> None:
  """Checks what the manifest says: that the data set has the classes, and images in the splits.

  Args:
    data: data set.
    splits: names of the splits.

  Raises:
    UserError: the data set is missing, damaged, or not the one that `data` describes.
  """
  manifest = _load_described_manifest(data)
  for name in splits:
    _find_split(data, manifest, name)


def fetch(data: Data, *splits: str) -> None:
  """Makes sure that the record files of splits are here, in their full lengths.

  Those in a bucket are copied to the cache, unless they are there.

  Args:
    data: data set.
    splits: names of the splits.

  Raises:
    UserError: the data set is missing or damaged, or there is no room for it.
  """
  manifest = _load_manifest(data)
  _fetch(data, [_find_split(data, manifest, name) for name in splits])


def class_names(data: Data) -> tuple[str, ...]:
  """Returns the names of the classes, in the order of their indices."""
  return _load_manifest(data).class_names


def train_examples(data: Data) -> int:
  """Returns the number of records of the training split, which make one epoch."""
  return _find_split(data, _load_manifest(data), data.train_split).records


def evaluation_examples(data: Data) -> int:
  """Returns the number of records of the held-out split."""
  return _find_split(data, _load_manifest(data), data.evaluation_split).records


def balanced_class_weights(data: Data) -> np.ndarray:
  """Counts the labels of the training split and returns weights that make up for their numbers.

  Weight and number of labels of a class have the same product for every class, and the mean weight
  of a label is 1. All records are read, with a progress bar on a terminal.

  Returns:
    float32 [classes]; 0 for a class without labels.

  Raises:
    UserError: the data set is missing or damaged.
  """
  manifest = _load_manifest(data)
  split = _find_split(data, manifest, data.train_split)
  reader = _open(data, split)
  counts = np.zeros(len(manifest.class_names))
  for index in tqdm(range(len(reader)), desc="counting classes", unit="image", disable=None):
    try:
      labels = reader.read(index).labels
    except BadRecordError:
      continue
    if manifest.allows(labels):
      np.add.at(counts, list(labels), 1)
  has_labels = counts > 0
  sums = counts.sum() / max(1, has_labels.sum())
  return np.where(has_labels, sums / np.maximum(counts, 1), 0).astype(np.float32)


def open_decoder(data: Data, split_name: str) -> Decoder:
  """Returns the decoder of a split, after checking that its record files have their full lengths.

  Raises:
    UserError: the data set is missing, damaged, or not the one that `data` describes.
  """
  manifest = _load_described_manifest(data)
  return Decoder(_open(data, _find_split(data, manifest, split_name)), manifest)


def _open(data: Data, split: Split) -> RecordReader:
  return RecordReader(_fetch(data, [split]), split)


def _fetch(data: Data, splits: Sequence[Split]) -> pathlib.Path:
  """Makes sure that record files are here, as `fetch` does, and returns their folder."""
  folder = local_folder(data.path)
  if is_in_bucket(data.path):
    from nfnet.buckets.verified_copies import ExpectedFile, copy_files

    files = {
      file.file: ExpectedFile(name=file.file, size_bytes=file.size_bytes, sha256=file.sha256)
      for split in splits
      for file in split.record_files
    }
    copy_files(data.path, files.values(), folder)
  for split in splits:
    check_file_sizes(folder, split)
  return folder


def _load_described_manifest(data: Data) -> Manifest:
  """Returns the manifest, after checking that it has as many classes as `data` says."""
  manifest = _load_manifest(data)
  if data.num_classes != len(manifest.class_names):
    raise UserError(
      f"data.num_classes={data.num_classes}, but data set {data.path} has "
      f"{format_count(len(manifest.class_names), 'class')}; set --config.data.num_classes="
      f"{len(manifest.class_names)}"
    )
  return manifest


def _load_manifest(data: Data) -> Manifest:
  if not data.path:
    raise UserError("data.path is not set: it names a folder that train.prepare_data wrote")
  return load_manifest(local_folder(data.path))


def _find_split(data: Data, manifest: Manifest, name: str) -> Split:
  splits = manifest.splits
  if name not in splits or not splits[name].records:
    raise UserError(
      f"data set {data.path} has no images in split {name!r}; it has {', '.join(splits)}: take "
      "another split, or let train.prepare_data set images aside with --evaluation_share"
    )
  return splits[name]
