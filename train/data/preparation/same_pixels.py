"""Finds images with the same pixels, in two splits or in one."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from nfnet.errors import escaped

DIGEST_BYTES = 8
NO_DIGEST = bytes(DIGEST_BYTES)
"""Stands for an image that was left out."""


def pixel_digest(pixels: np.ndarray) -> bytes:
  """Returns a digest of decoded pixels, which metadata and lossless recoding do not change.

  Of 64 bits: 14 million images compared with 50,000 are mistaken for each other once in 25 million
  data sets. SHA-256 takes 0.33 ms for 500 x 375 pixels, and decoding a JPEG of them 1.1 to 1.9 ms.

  Args:
    pixels: uint8 [height, width, 3].
  """
  digest = hashlib.sha256(str(pixels.shape).encode())
  digest.update(np.ascontiguousarray(pixels))
  return digest.digest()[:DIGEST_BYTES]


def find_repeated_images(
  names: Sequence[str], labels: Sequence[tuple[int, ...]], digests: bytes
) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
  """Returns groups of images of a split that have the same pixels, each with its labels.

  Args:
    names: names of the images.
    labels: class indices of each.
    digests: their digests, one after the other.
  """
  values = np.frombuffer(digests, np.uint64)
  order = np.argsort(values, kind="stable")
  is_repeated = np.diff(values[order]) == 0
  groups = []
  # The places in the order at which runs of equal digests begin and end.
  edges = np.flatnonzero(np.diff(np.concatenate(([0], is_repeated.view(np.int8), [0]))))
  for start, stop in edges.reshape(-1, 2):
    if values[order[start]]:
      members = sorted((escaped(names[i]), labels[i]) for i in order[start : stop + 1])
      groups.append(tuple(members))
  return tuple(sorted(groups))


def find_images_in_two_splits(
  names: Mapping[str, Sequence[str]], digests: Mapping[str, bytes]
) -> tuple[tuple[str, str], ...]:
  """Returns pairs of names of images with the same pixels, from a later and an earlier split.

  An image has one pair for each earlier split that has its pixels, however often. Sorting takes
  about 24 bytes for each image.

  Args:
    names: names of the images, by split; no split is empty.
    digests: their digests, one after the other, by split.
  """
  values = {split: np.frombuffer(joined, np.uint64) for split, joined in digests.items()}
  pairs = []
  for earlier, later in itertools.combinations(values, 2):
    order = np.argsort(values[earlier], kind="stable")
    places = np.searchsorted(values[earlier], values[later], sorter=order)
    first_equal = order[np.minimum(places, len(order) - 1)]
    is_same = (values[earlier][first_equal] == values[later]) & (values[later] != 0)
    pairs += (
      (escaped(names[later][index]), escaped(names[earlier][first_equal[index]]))
      for index in np.flatnonzero(is_same)
    )
  return tuple(sorted(pairs))
