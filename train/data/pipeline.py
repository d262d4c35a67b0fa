"""Batches of images from a prepared data set, in an order that nothing but the seed decides.

The order is a function of (seed, epoch, position): it does not depend on the number of hosts or
workers, and every record comes exactly once an epoch. A batch may span two epochs. Global batch k
holds positions k * batch_size ... (k + 1) * batch_size - 1; host h of n takes every n-th of them.
So the only state is a position, and a run may resume on another number of hosts and workers. With
`repetitions`, every record comes so many times in a row, and an epoch is as many times longer.

A batch is a dict of NumPy arrays:

    image   uint8 [batch, pixels, pixels, 3]
    labels  int32 [batch, labels]   class indices, filled up with -1
    weight  float32 [batch]         0 for a black image in place of one that cannot be decoded
    id      int64 [batch]           index of the record in its split; -1 for padding
    position int64 [batch]          place in the order, counted over all batches
"""

import hashlib
import multiprocessing
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from nfnet.errors import UserError
from nfnet.images.decoding import BadImageError, decode_image
from nfnet.images.resizing import resize_and_center_crop
from train.config import experiment
from train.data import augmentation, rand_augment, record_reader, records, worker_process

Batch = dict[str, np.ndarray]

# Below this many images, a share says little: the limit acts as if so many had been seen.
BAD_IMAGE_SHARE_MIN_IMAGES = 10_000

# Decoded images of a split that is kept in memory are kept too, until they fill this much. Decoding
# is half of what a 28x28 PNG costs (104 of 200 us).
_DECODED_BYTES_MAX = 256 * 2**20

_BAD_IMAGES_NAMED = 5
_SECONDS_TO_CLOSE = 3.0
_PREFETCH_THREADS_MAX = 16
_PREFETCH_BYTES_MAX = 2 * 2**30


class Batches:
  """Iterates over batches; see `train_batches` and `evaluation_batches`.

  Also a context manager that ends threads and worker processes.
  """

  def __init__(
    self,
    elastic_iterator: grain.experimental.ElasticIterator,
    loader: "_Loader",
    bad_image_share_max: float,
    order_sha256: str,
  ):
    self._open_iterators = [elastic_iterator]
    self._loader = loader
    self._bad_image_share_max = bad_image_share_max
    self._order_sha256 = order_sha256
    self._bad_ids: list[int] = []
    # Grain's destructors fail, loudly, in what is still there when the interpreter ends; finalizers
    # run before that.
    self._close = weakref.finalize(self, _close_and_forget, self._open_iterators)

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    if not self._open_iterators:
      raise StopIteration
    try:
      batch = next(self._open_iterators[0])
    except StopIteration:
      self.close()
      raise
    self._bad_ids += batch["id"][(batch["weight"] == 0) & (batch["id"] >= 0)].tolist()
    return batch

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def get_state(self) -> dict[str, Any]:
    """Returns what JSON can hold and any number of hosts and workers can continue from."""
    return {**self._open_iterators[0].get_state(), "order_sha256": self._order_sha256}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues after the batch that preceded `get_state`; raises UserError on other data."""
    if state["order_sha256"] != self._order_sha256:
      raise UserError(
        f"data set {self._loader.reader.folder} or the seed is not the one that the saved "
        "position belongs to: restore it, or start in a new workdir"
      )
    self._open_iterators[0].set_state({"global_next_index": state["global_next_index"]})

  def close(self) -> None:
    """Ends threads and worker processes; there are no batches after this."""
    self._close()

  def check_bad_images(self, bad: int, images: int) -> None:
    """Raises UserError if so many of the images that all hosts have had are too many bad ones.

    The message names some of those that this host has had.
    """
    if bad <= self._bad_image_share_max * max(images, BAD_IMAGE_SHARE_MIN_IMAGES):
      return
    different = list(dict.fromkeys(self._bad_ids))[:_BAD_IMAGES_NAMED]
    named = "; ".join(map(self._loader.describe_bad, different)) or "none of this host's"
    raise UserError(
      f"{bad} of {images} images of {self._loader.reader.folder} could not be decoded, more than "
      f"data.bad_image_share_max={self._bad_image_share_max} allows: {named}"
    )


def _close_and_forget(iterators: list[grain.experimental.ElasticIterator]) -> None:
  while iterators:
    closing = threading.Thread(target=iterators.pop().close, daemon=True)
    closing.start()
    closing.join(_SECONDS_TO_CLOSE)
    if closing.is_alive():
      # A read that does not return: Grain would wait longer than a machine does that is taken away.
      for child in multiprocessing.active_children():
        if child.name.startswith("grain-"):
          child.kill()
      closing.join()


def class_names(data: experiment.Data) -> tuple[str, ...]:
  """Returns the names of the classes, in the order of their indices."""
  return _load_manifest(data).class_names


def train_examples(data: experiment.Data) -> int:
  """Returns the records of the training split: one epoch."""
  return _find_split(data, data.train_split).records


def evaluation_examples(data: experiment.Data) -> int:
  """Returns the records of the split that is held out."""
  return _find_split(data, data.evaluation_split).records


def train_batches(
  data: experiment.Data, seed: int, *, shard_index: int = 0, shard_count: int = 1
) -> Batches:
  """Returns endless batches of the training split, cropped, flipped and distorted at random.

  Args:
    data: which images, how large the batch.
    seed: of order and augmentation, >= 0.
    shard_index: this host.
    shard_count: hosts; each gets `batch_size / shard_count` images of each batch.

  Raises:
    UserError: the data set is missing, damaged, or another one than `data` says.
  """
  loader = _make_loader(data, data.train_split)
  examples = in_order(len(loader.reader), seed, data.repetitions).map_with_index(
    _TrainExample(loader, data, seed)
  )
  return Batches(
    _elastic_iterator(examples, data, data.batch_size, data.train_pixels, shard_index, shard_count),
    loader,
    data.bad_image_share_max,
    _order_sha256(loader.reader.split, seed),
  )


def evaluation_batches(
  data: experiment.Data, *, shard_index: int = 0, shard_count: int = 1
) -> Batches:
  """Returns the batches of the held-out split, once, in order.

  Every host gets the same number of batches: the last is filled up with black images of weight 0
  and id -1.

  Args:
    data: which images, how large the batch.
    shard_index: this host.
    shard_count: hosts; each gets `evaluation_batch_size / shard_count` images of each batch.

  Raises:
    UserError: the data set is missing, damaged, or another one than `data` says.
  """
  loader = _make_loader(data, data.evaluation_split)
  batches = -(-len(loader.reader) // data.evaluation_batch_size)
  examples = grain.MapDataset.range(batches * data.evaluation_batch_size).map(
    _EvaluationExample(loader, data)
  )
  return Batches(
    _elastic_iterator(
      examples,
      data,
      data.evaluation_batch_size,
      data.evaluation_pixels,
      shard_index,
      shard_count,
    ),
    loader,
    data.bad_image_share_max,
    _order_sha256(loader.reader.split, seed=None),
  )


def in_order(examples: int, seed: int, repetitions: int) -> grain.MapDataset:
  """Indices of the data set's records, epoch after epoch, each time in another order of the seed.

  Args:
    examples: records of the data set.
    seed: of the run.
    repetitions: of each index, one after the other, before the next one comes.
  """
  # Grain shuffles epoch e with (seed + e): unmixed, a run with seed + 1 would be this one shifted.
  (shuffle_seed,) = np.random.SeedSequence(seed).generate_state(1)
  once = grain.MapDataset.range(examples).shuffle(seed=int(shuffle_seed)).repeat()
  # Taking turns, several of the same.
  return once if repetitions == 1 else grain.MapDataset.mix([once] * repetitions)


class _Loader:
  """Reads and decodes records of one split; the same object in every thread and worker."""

  def __init__(self, reader: record_reader.RecordReader, manifest: records.Manifest):
    self.reader = reader
    self._classes = len(manifest.class_names)
    self._labels_per_record_max = manifest.labels_per_record_max
    self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._decoded_bytes = 0

  def __setstate__(self, state: dict[str, Any]) -> None:
    # Grain has no hook for the start of a worker on this path; unpickling is the first thing.
    self.__dict__.update(state)
    if multiprocessing.parent_process() is not None:
      worker_process.exit_with_parent()

  def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 [height, width, 3] and int32 [labels]; raises Bad{Record,Image}Error."""
    if (known := self._decoded.get(index)) is not None:
      return known
    record = self.reader.read(index)
    count = len(record.labels)
    if count > self._labels_per_record_max or not all(
      0 <= label < self._classes for label in record.labels
    ):
      raise records.BadRecordError(f"has labels {list(record.labels)}")
    labels = np.full(self._labels_per_record_max, -1, np.int32)
    labels[:count] = record.labels
    image = decode_image(record.image)
    if self.reader.in_memory and self._decoded_bytes + image.nbytes <= _DECODED_BYTES_MAX:
      self._decoded[index] = image, labels
      self._decoded_bytes += image.nbytes
    return image, labels

  def blank(self, pixels: int, index: int, position: int) -> Batch:
    """Returns a black image without labels that counts for nothing."""
    image = np.zeros((pixels, pixels, 3), np.uint8)
    labels = np.full(self._labels_per_record_max, -1, np.int32)
    return _example(image, labels, 0.0, index, position)

  def describe_bad(self, index: int) -> str:
    """Says where a record is and what is wrong with it."""
    try:
      self.load(index)
      reason = "readable now"
    except (records.BadRecordError, BadImageError) as error:
      reason = str(error)
    return f"{self.reader.describe(index)} ({reason})"


class _TrainExample:
  """From a position in the endless order, and the record that is there, to an augmented image."""

  def __init__(self, loader: _Loader, data: experiment.Data, seed: int):
    self._loader = loader
    self._data = data
    self._seed = seed

  def __call__(self, position: int, index: int) -> Batch:
    data = self._data
    try:
      image, labels = self._loader.load(index)
    except (records.BadRecordError, BadImageError):
      return self._loader.blank(data.train_pixels, index, position)
    epoch = position // (len(self._loader.reader) * data.repetitions)
    generator = augmentation.image_generator(self._seed, epoch, index, position % data.repetitions)
    image = augmentation.random_resized_crop(
      image,
      generator,
      data.train_pixels,
      area_min=data.crop_area_min,
      aspect_ratio_max=data.crop_aspect_ratio_max,
    )
    if data.horizontal_flip:
      image = augmentation.random_horizontal_flip(image, generator)
    if data.rand_augment_layers:
      image = rand_augment.rand_augment(
        image,
        generator,
        layers=data.rand_augment_layers,
        magnitude=data.rand_augment_magnitude,
      )
    return _example(image, labels, 1.0, index, position)


class _EvaluationExample:
  """From a record's index to its image, resized and cropped; beyond the last, padding."""

  def __init__(self, loader: _Loader, data: experiment.Data):
    self._loader = loader
    self._data = data

  def __call__(self, index: int) -> Batch:
    pixels = self._data.evaluation_pixels
    if index >= len(self._loader.reader):
      return self._loader.blank(pixels, -1, position=index)
    try:
      image, labels = self._loader.load(index)
    except (records.BadRecordError, BadImageError):
      return self._loader.blank(pixels, index, position=index)
    image = resize_and_center_crop(image, pixels, self._data.evaluation_resize_margin)
    return _example(image, labels, 1.0, index, position=index)


def _example(
  image: np.ndarray, labels: np.ndarray, weight: float, index: int, position: int
) -> Batch:
  return {
    "image": image,
    "labels": labels,
    "weight": np.float32(weight),
    "id": np.int64(index),
    "position": np.int64(position),
  }


def _load_manifest(data: experiment.Data) -> records.Manifest:
  if not data.path:
    raise UserError("data.path is not set: it names a folder that train.prepare_data wrote")
  return records.load_manifest(data.path)


def _find_split(data: experiment.Data, name: str) -> records.Split:
  splits = _load_manifest(data).splits
  if name not in splits or not splits[name].records:
    raise UserError(
      f"data set {data.path} has no images in split {name!r}; it has {', '.join(splits)}"
    )
  return splits[name]


def _make_loader(data: experiment.Data, split_name: str) -> _Loader:
  manifest = _load_manifest(data)
  if data.num_classes != len(manifest.class_names):
    raise UserError(
      f"data.num_classes={data.num_classes}, but data set {data.path} has "
      f"{len(manifest.class_names)} classes"
    )
  split = _find_split(data, split_name)
  records.check_shard_sizes(data.path, split)
  return _Loader(record_reader.RecordReader(data.path, split), manifest)


def _order_sha256(split: records.Split, seed: int | None) -> str:
  digest = hashlib.sha256(f"{seed}".encode())
  for shard in split.shards:
    digest.update(shard.sha256.encode())
  return digest.hexdigest()


def _elastic_iterator(
  examples: grain.MapDataset,
  data: experiment.Data,
  batch_size: int,
  pixels: int,
  shard_index: int,
  shard_count: int,
) -> grain.experimental.ElasticIterator:
  if batch_size % shard_count:
    raise UserError(f"a batch of {batch_size} images cannot be divided among {shard_count} hosts")
  multiprocessing_options = None
  if data.workers:
    multiprocessing_options = grain.MultiprocessingOptions(num_workers=data.workers)
    # Grain asks for the value of its flags, which only absl's `app.run` parses.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
  return grain.experimental.ElasticIterator(
    examples,
    batch_size,
    grain.sharding.ShardOptions(shard_index=shard_index, shard_count=shard_count),
    read_options=_read_options(data.workers, batch_size // shard_count * pixels**2 * 3),
    multiprocessing_options=multiprocessing_options,
  )


def _read_options(workers: int, batch_bytes: int) -> grain.ReadOptions:
  # What Grain prefetches here are whole batches, so its default of 500 would fill any memory.
  threads = 1 if workers else min(os.cpu_count() or 1, _PREFETCH_THREADS_MAX)
  threads = max(1, min(threads, _PREFETCH_BYTES_MAX // batch_bytes))
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
