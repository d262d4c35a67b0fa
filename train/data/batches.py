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

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nfnet.errors import UserError, format_count
from train.config.experiment import Data
from train.data.batch_workers.batches_ahead import batches_ahead
from train.data.batch_workers.deaths import WorkerDeaths
from train.data.batch_workers.pool import WorkerPool
from train.data.batch_workers.threads import WorkerThreads
from train.data.dataset import open_decoder
from train.data.epoch_order import example_order, order_sha256
from train.data.examples import Decoder, EvaluationExamples, MakeBatch, TrainExamples

Batch = dict[str, np.ndarray]

# Of fewer images, a share says little: the limit then applies as if this many had been seen.
BAD_IMAGE_SHARE_MIN_IMAGES = 10_000

_BAD_IMAGES_NAMED = 5


def train_batches(
  data: Data,
  seed: int,
  *,
  shard_index: int = 0,
  shard_count: int = 1,
  deaths: WorkerDeaths | None = None,
) -> "Batches":
  """Returns endless batches of the training split, cropped, flipped and distorted at random.

  Args:
    data: section of the configuration that says which images and how large a batch.
    seed: seed of order and augmentation, >= 0.
    shard_index: index of this host's data shard.
    shard_count: number of hosts; each gets `batch_size / shard_count` images of each batch.
    deaths: is told of worker processes that are killed; None prints a line for each on stderr.

  Raises:
    UserError: the data set is missing, damaged, or not the one that `data` describes.
  """
  decoder = open_decoder(data, data.train_split)
  return Batches(
    MakeBatch(TrainExamples(decoder, data, seed)),
    example_order(len(decoder.reader), seed, data.repetitions),
    None,
    decoder,
    data,
    _Share(data.batch_size, data.train_pixels, shard_index, shard_count),
    order_sha256(decoder.reader.split, seed),
    deaths,
  )


def evaluation_batches(
  data: Data,
  *,
  shard_index: int = 0,
  shard_count: int = 1,
  deaths: WorkerDeaths | None = None,
) -> "Batches":
  """Returns the batches of the held-out split, once, in order.

  Every host gets the same number of batches: the last is padded with black images of weight 0 and
  id -1.

  Args:
    data: section of the configuration that says which images and how large a batch.
    shard_index: index of this host's data shard.
    shard_count: number of hosts; each gets `evaluation_batch_size / shard_count` images of each
      batch.
    deaths: is told of worker processes that are killed; None prints a line for each on stderr.

  Raises:
    UserError: the data set is missing, damaged, or not the one that `data` describes.
  """
  decoder = open_decoder(data, data.evaluation_split)
  batch_size = data.evaluation_batch_size
  batches = -(-len(decoder.reader) // batch_size)
  return Batches(
    MakeBatch(EvaluationExamples(decoder, data)),
    range(batches * batch_size),
    batches,
    decoder,
    data,
    _Share(batch_size, data.evaluation_pixels, shard_index, shard_count),
    order_sha256(decoder.reader.split, seed=None),
    deaths,
  )


class _Share(NamedTuple):
  """Says what this host gets of each batch.

  Attributes:
    batch_size: number of images of the global batch.
    pixels: side of an image.
    shard_index: index of this host's data shard.
    shard_count: number of hosts.
  """

  batch_size: int
  pixels: int
  shard_index: int
  shard_count: int


class Batches:
  """An iterator over batches; see `train_batches` and `evaluation_batches`.

  It is also a context manager that ends threads and worker processes. A worker process that is
  killed is replaced, and the batches stay the same.
  """

  def __init__(
    self,
    make_batch: MakeBatch,
    order: Sequence[int],
    count: int | None,
    decoder: Decoder,
    data: Data,
    share: _Share,
    order_sha256: str,
    deaths: WorkerDeaths | None,
  ):
    if share.batch_size % share.shard_count:
      raise UserError(
        f"a batch of {format_count(share.batch_size, 'image')} cannot be divided among "
        f"{format_count(share.shard_count, 'host')}"
      )
    self._make_batch = make_batch
    self._order = order
    self._end = None if count is None else count * share.batch_size
    self._decoder = decoder
    self._workers = data.workers
    self._bad_image_share_max = data.bad_image_share_max
    self._share = share
    self._order_sha256 = order_sha256
    self._deaths = deaths or WorkerDeaths(data.workers)
    images = share.batch_size // share.shard_count
    self._ahead = batches_ahead(data.workers, images * share.pixels**2 * 3)
    self._bad_ids: list[int] = []
    # Position of the next batch to return, and of the next one to ask for.
    self._next = self._next_to_request = 0
    # What makes the batches, from the first one on; a list, so that the finalizer sees it change.
    self._makers: list[WorkerPool | WorkerThreads] = []
    self._is_closed = False
    weakref.finalize(self, _close, self._makers)

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    if self._is_closed or self._next == self._end:
      self.close()
      raise StopIteration
    if not self._makers:
      self._start()
    maker, ahead = self._makers[0], self._ahead
    while self._next_to_request < self._next + ahead * self._share.batch_size:
      if self._next_to_request == self._end:
        break
      self._request(maker)
    batch = maker.receive()
    self._next += self._share.batch_size
    self._bad_ids += batch["id"][(batch["weight"] == 0) & (batch["id"] >= 0)].tolist()
    return batch

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def get_state(self) -> dict[str, Any]:
    """Returns JSON values from which any number of hosts and workers can continue."""
    return {"global_next_index": self._next, "order_sha256": self._order_sha256}

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
    # Batches that were asked for are no longer wanted.
    _close(self._makers)
    self._next = self._next_to_request = state["global_next_index"]

  def close(self) -> None:
    """Ends threads and worker processes; there are no batches after this."""
    self._is_closed = True
    _close(self._makers)

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

  def _start(self) -> None:
    if self._workers:
      self._makers.append(WorkerPool(self._make_batch, self._workers, self._deaths))
    else:
      self._makers.append(WorkerThreads(self._make_batch, self._ahead))

  def _request(self, maker: WorkerPool | WorkerThreads) -> None:
    end = self._next_to_request + self._share.batch_size
    positions = range(self._next_to_request + self._share.shard_index, end, self._share.shard_count)
    maker.request(np.array(positions), np.array([self._order[position] for position in positions]))
    self._next_to_request = end


def _close(makers: list[WorkerPool | WorkerThreads]) -> None:
  while makers:
    makers.pop().close()
