"""Makes one example: decodes its record, then augments it for training or crops it for evaluation.

An example is a dict with the arrays of a batch (see `train.data.batches`), without the batch
dimension. An image that cannot be decoded becomes a black one of weight 0, so that the order of
examples does not change.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nfnet.images.decoding import BadImageError, decode_image
from nfnet.images.resizing import resize_and_center_crop
from train.config.experiment import Data
from train.data.augmentation import augment, image_generator
from train.data.epoch_order import epoch_and_repetition
from train.data.manifest import Manifest
from train.data.record_files import BadRecordError
from train.data.record_reader import RecordReader

Example = dict[str, Any]

# If a split's records are kept in memory, its decoded images are kept too, up to this size:
# decoding is half of the cost of a 28x28 PNG (104 of 200 us).
_DECODED_BYTES_MAX = 256 * 2**20


class Decoder:
  """Reads and decodes the records of one split.

  The threads of a process share one decoder; each worker process has a copy.

  Attributes:
    reader: source of the records.
  """

  def __init__(self, reader: RecordReader, manifest: Manifest):
    self.reader = reader
    self._manifest = manifest
    self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._decoded_bytes = 0

  def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image, uint8 [height, width, 3], and the labels, int32 [labels], of a record.

    Raises:
      BadRecordError: the record is damaged or has labels that the manifest does not allow.
      BadImageError: the image cannot be decoded.
    """
    if (known := self._decoded.get(index)) is not None:
      return known
    record = self.reader.read(index)
    if not self._manifest.allows(record.labels):
      raise BadRecordError(f"has labels {list(record.labels)}")
    labels = self._no_labels()
    labels[: len(record.labels)] = record.labels
    image = decode_image(record.image)
    if self.reader.in_memory and self._decoded_bytes + image.nbytes <= _DECODED_BYTES_MAX:
      self._decoded[index] = image, labels
      self._decoded_bytes += image.nbytes
    return image, labels

  def blank(self, pixels: int, index: int, position: int) -> Example:
    """Returns an example with a black image and without labels, which has weight 0."""
    image = np.zeros((pixels, pixels, 3), np.uint8)
    return _example(image, self._no_labels(), 0.0, index, position)

  def describe_bad(self, index: int) -> str:
    """Says where a record is and why it cannot be decoded."""
    try:
      self.load(index)
      reason = "readable now"
    except (BadRecordError, BadImageError) as error:
      reason = str(error)
    return f"{self.reader.describe(index)} ({reason})"

  def _no_labels(self) -> np.ndarray:
    return np.full(self._manifest.labels_per_record_max, -1, np.int32)


class TrainExamples:
  """Makes a training example from a position in the order and the index of the record there."""

  def __init__(self, decoder: Decoder, data: Data, seed: int):
    self._decoder = decoder
    self._data = data
    self._seed = seed

  def __call__(self, position: int, index: int) -> Example:
    """Returns an augmented example.

    Args:
      position: position in the order, counted over all epochs.
      index: index of the record in its split.
    """
    data = self._data
    try:
      image, labels = self._decoder.load(index)
    except (BadRecordError, BadImageError):
      return self._decoder.blank(data.train_pixels, index, position)
    epoch, repetition = epoch_and_repetition(position, len(self._decoder.reader), data.repetitions)
    generator = image_generator(self._seed, epoch, index, repetition)
    return _example(augment(image, generator, data), labels, 1.0, index, position)


class EvaluationExamples:
  """Makes an evaluation example, from the same arguments; indices beyond the last give padding."""

  def __init__(self, decoder: Decoder, data: Data):
    self._decoder = decoder
    self._data = data

  def __call__(self, position: int, index: int) -> Example:
    """Returns an example that is resized and cropped from the center.

    Args:
      position: position in the order.
      index: index of the record in its split.
    """
    pixels = self._data.evaluation_pixels
    if index >= len(self._decoder.reader):
      return self._decoder.blank(pixels, -1, position)
    try:
      image, labels = self._decoder.load(index)
    except (BadRecordError, BadImageError):
      return self._decoder.blank(pixels, index, position)
    image = resize_and_center_crop(
      image, pixels, self._data.evaluation_resize_margin, self._data.evaluation_resize
    )
    return _example(image, labels, 1.0, index, position)


class MakeBatch:
  """Makes a batch of examples; data workers get this object and call it."""

  def __init__(self, make_example: Callable[[int, int], Example]):
    self._make_example = make_example

  def __call__(self, positions: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays of `train.data.batches`.

    Args:
      positions: int64 [batch], positions in the order.
      indices: int64 [batch], indices of the records there.
    """
    examples = [
      self._make_example(int(position), int(index))
      for position, index in zip(positions, indices, strict=True)
    ]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _example(
  image: np.ndarray, labels: np.ndarray, weight: float, index: int, position: int
) -> Example:
  return {
    "image": image,
    "labels": labels,
    "weight": np.float32(weight),
    "id": np.int64(index),
    "position": np.int64(position),
  }
