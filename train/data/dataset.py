"""The prepared data set that a configuration names: its classes, its sizes, its decoders."""

import numpy as np
from tqdm import tqdm

from nfnet.errors import UserError, format_count
from train.config.experiment import Data
from train.data.examples import Decoder
from train.data.manifest import Manifest, Split, check_file_sizes, load_manifest
from train.data.record_files import BadRecordError
from train.data.record_reader import RecordReader


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
  check_file_sizes(data.path, split)
  reader = RecordReader(data.path, split)
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
  manifest = _load_manifest(data)
  if data.num_classes != len(manifest.class_names):
    raise UserError(
      f"data.num_classes={data.num_classes}, but data set {data.path} has "
      f"{format_count(len(manifest.class_names), 'class')}; set --config.data.num_classes="
      f"{len(manifest.class_names)}"
    )
  split = _find_split(data, manifest, split_name)
  check_file_sizes(data.path, split)
  return Decoder(RecordReader(data.path, split), manifest)


def _load_manifest(data: Data) -> Manifest:
  if not data.path:
    raise UserError("data.path is not set: it names a folder that train.prepare_data wrote")
  return load_manifest(data.path)


def _find_split(data: Data, manifest: Manifest, name: str) -> Split:
  splits = manifest.splits
  if name not in splits or not splits[name].records:
    raise UserError(
      f"data set {data.path} has no images in split {name!r}; it has {', '.join(splits)}"
    )
  return splits[name]
