"""Batches of images from a prepared data set, and the state from which a run resumes.

Global batch k holds the positions k * batch_size ... (k + 1) * batch_size - 1 of the order
(`train.data.epoch_order`), so it may span two epochs. The data shard of host h of n consists of
every n-th of these positions, beginning with the h-th. So the only state is a position, and a run
may resume on another number of hosts and workers.

A batch is a dict of NumPy arrays:

    image     uint8 [batch, pixels, pixels, 3]
    labels    int32 [batch, labels]   class indices, padded with -1
    weight    float32 [batch]         0 for a black image in place of one that cannot be decoded
    id        int64 [batch]           index of the record in its split; -1 for padding
    position  int64 [batch]           position in the order, counted over all batches
"""

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from nfnet.errors import UserError
from train.config.experiment import Data
from train.data.dataset import open_decoder
from train.data.epoch_order import example_order, order_sha256
from train.data.examples import Decoder, EvaluationExamples, TrainExamples
from train.data.workers import (
  check_prefetched_bytes,
  kill_grain_workers,
  threads_per_process,
)

Batch = dict[str, np.ndarray]

# Of fewer images, a share says little: the limit then applies as if this many had been seen.
BAD_IMAGE_SHARE_MIN_IMAGES = 10_000

_BAD_IMAGES_NAMED = 5
_SECONDS_TO_CLOSE = 3.0


def train_batches(
  data: Data, seed: int, *, shard_index: int = 0, shard_count: int = 1
) -> "Batches":
  """Returns endless batches of the training split, cropped, flipped and distorted at random.

  Args:
    data: section of the configuration that says which images and how large a batch.
    seed: seed of order and augmentation, >= 0.
    shard_index: index of this host's data shard.
    shard_count: number of hosts; each gets `batch_size / shard_count` images of each batch.

  Raises:
    UserError: the data set is missing, damaged, or not the one that `data` describes.
  """
  decoder = open_decoder(data, data.train_split)
  examples = example_order(len(decoder.reader), seed, data.repetitions).map_with_index(
    TrainExamples(decoder, data, seed)
  )
  return Batches(
    _elastic_iterator(examples, data, data.batch_size, data.train_pixels, shard_index, shard_count),
    decoder,
    data.bad_image_share_max,
    order_sha256(decoder.reader.split, seed),
  )


def evaluation_batches(data: Data, *, shard_index: int = 0, shard_count: int = 1) -> "Batches":
  """Returns the batches of the held-out split, once, in order.

  Every host gets the same number of batches: the last is padded with black images of weight 0 and
  id -1.

  Args:
    data: section of the configuration that says which images and how large a batch.
    shard_index: index of this host's data shard.
    shard_count: number of hosts; each gets `evaluation_batch_size / shard_count` images of each
      batch.

  Raises:
    UserError: the data set is missing, damaged, or not the one that `data` describes.
  """
  decoder = open_decoder(data, data.evaluation_split)
  batch_size = data.evaluation_batch_size
  batches = -(-len(decoder.reader) // batch_size)
  examples = grain.MapDataset.range(batches * batch_size).map(EvaluationExamples(decoder, data))
  return Batches(
    _elastic_iterator(examples, data, batch_size, data.evaluation_pixels, shard_index, shard_count),
    decoder,
    data.bad_image_share_max,
    order_sha256(decoder.reader.split, seed=None),
  )


class Batches:
  """An iterator over batches; see `train_batches` and `evaluation_batches`.

  It is also a context manager that ends threads and worker processes.
  """

  def __init__(
    self,
    elastic_iterator: grain.experimental.ElasticIterator,
    decoder: Decoder,
    bad_image_share_max: float,
    order_sha256: str,
  ):
    self._open_iterators = [elastic_iterator]
    self._decoder = decoder
    self._bad_image_share_max = bad_image_share_max
    self._order_sha256 = order_sha256
    self._bad_ids: list[int] = []
    # Destructors of Grain that run while the interpreter shuts down fail with tracebacks;
    # finalizers run before that.
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
    """Returns JSON values from which any number of hosts and workers can continue."""
    return {**self._open_iterators[0].get_state(), "order_sha256": self._order_sha256}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues after the batch that preceded `get_state`.

    Raises:
      UserError: the state belongs to another data set or seed.
    """
    if state["order_sha256"] != self._order_sha256:
      raise UserError(
        f"data set {self._decoder.reader.folder} or the seed is not the one that the saved "
        "position belongs to: restore it, or start in a new workdir"
      )
    self._open_iterators[0].set_state({"global_next_index": state["global_next_index"]})

  def close(self) -> None:
    """Ends threads and worker processes; there are no batches after this."""
    self._close()

  def check_bad_images(self, bad: int, images: int) -> None:
    """Raises UserError if too many images could not be decoded.

    The message names some of the bad images that this host has had.

    Args:
      bad: number of images, over all hosts, that could not be decoded.
      images: number of images, over all hosts, that were read.
    """
    if bad <= self._bad_image_share_max * max(images, BAD_IMAGE_SHARE_MIN_IMAGES):
      return
    different = list(dict.fromkeys(self._bad_ids))[:_BAD_IMAGES_NAMED]
    named = "; ".join(map(self._decoder.describe_bad, different)) or "none of this host's"
    raise UserError(
      f"{bad} of {images} images of {self._decoder.reader.folder} could not be decoded, more than "
      f"data.bad_image_share_max={self._bad_image_share_max} allows: {named}"
    )


def _close_and_forget(iterators: list[grain.experimental.ElasticIterator]) -> None:
  while iterators:
    closing = threading.Thread(target=iterators.pop().close, daemon=True)
    closing.start()
    closing.join(_SECONDS_TO_CLOSE)
    if closing.is_alive():
      # Some read does not return, and Grain would wait for it longer than a preempted machine has.
      kill_grain_workers()
      closing.join()


def _elastic_iterator(
  examples: grain.MapDataset,
  data: Data,
  batch_size: int,
  pixels: int,
  shard_index: int,
  shard_count: int,
) -> grain.experimental.ElasticIterator:
  if batch_size % shard_count:
    raise UserError(f"a batch of {batch_size} images cannot be divided among {shard_count} hosts")
  # Grain prefetches whole batches here, so its default of 500 would fill any memory.
  batch_bytes = batch_size // shard_count * pixels**2 * 3
  check_prefetched_bytes(data.workers, batch_bytes)
  threads = threads_per_process(data.workers, batch_bytes)
  multiprocessing_options = None
  if data.workers:
    multiprocessing_options = grain.MultiprocessingOptions(num_workers=data.workers)
    # Grain reads its own absl flags, which nothing has parsed where absl's `app.run` is not used.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
  return grain.experimental.ElasticIterator(
    examples,
    batch_size,
    grain.sharding.ShardOptions(shard_index=shard_index, shard_count=shard_count),
    read_options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads),
    multiprocessing_options=multiprocessing_options,
  )
