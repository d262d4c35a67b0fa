"""The prepared data set that a configuration names: its classes, its sizes, its decoders."""

from nfnet.errors import UserError, format_count
from train.config.experiment import Data
from train.data.examples import Decoder
from train.data.manifest import Manifest, Split, check_file_sizes, load_manifest
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
