"""Sizes of the images of a split: quantiles and a histogram."""

import dataclasses
import itertools

import numpy as np

SIDES_BYTES = 4
"""Bytes for the height and the width of an image."""
NO_SIDES = bytes(SIDES_BYTES)
"""Stands for an image that was left out."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SIDE_EDGES = (32, 64, 128, 256, 512, 1024)
"""Edges of the bins of the histogram of the shorter sides, in pixels."""

_SIDES = np.dtype("<u2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSizes:
  """Sizes of the images of a split.

  Attributes:
    shorter_side: smallest value, 5 %, quarter, median, three quarters, 95 % and largest value of
      the shorter sides in pixels (`QUANTILES`).
    longer_side: the same of the longer sides.
    pixels: the same of the numbers of pixels.
    shorter_side_counts: number of images whose shorter side is below the first of `SIDE_EDGES`,
      between each two, and at least the last.
  """

  shorter_side: tuple[int, ...]
  longer_side: tuple[int, ...]
  pixels: tuple[int, ...]
  shorter_side_counts: tuple[int, ...]


def encode_sides(height: int, width: int) -> bytes:
  """Returns the bytes that note the sides of an image, at most 65,535 pixels each."""
  return np.array([height, width], _SIDES).tobytes()


def image_sizes(sides: bytes) -> ImageSizes:
  """Summarizes the sides of images, one after the other, of which at least one was not left out."""
  height_and_width = np.frombuffer(sides, _SIDES).reshape(-1, 2).astype(np.int64)
  height_and_width = height_and_width[height_and_width.min(axis=1) > 0]
  shorter, longer = height_and_width.min(axis=1), height_and_width.max(axis=1)
  bins = np.bincount(np.searchsorted(SIDE_EDGES, shorter, side="right"))
  counts = np.pad(bins, (0, len(SIDE_EDGES) + 1 - len(bins)))
  return ImageSizes(
    shorter_side=_quantiles(shorter),
    longer_side=_quantiles(longer),
    pixels=_quantiles(shorter * longer),
    shorter_side_counts=tuple(map(int, counts)),
  )


def describe_histogram(sizes: ImageSizes) -> str:
  """Returns the shares of the images by their shorter sides, as text."""
  total = sum(sizes.shorter_side_counts)
  middle = [f"{low} to {high - 1}" for low, high in itertools.pairwise(SIDE_EDGES)]
  names = [f"below {SIDE_EDGES[0]}", *middle, f"from {SIDE_EDGES[-1]}"]
  return ", ".join(
    f"{name}: {count / total:.1%}"
    for name, count in zip(names, sizes.shorter_side_counts, strict=True)
    if count
  )


def _quantiles(values: np.ndarray) -> tuple[int, ...]:
  # Values that some image has, so that they are the same on every machine.
  return tuple(map(int, np.quantile(values, QUANTILES, method="nearest")))
