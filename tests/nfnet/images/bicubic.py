"""Bicubic resampling written out as matrices in float64, independent of Pillow and TensorFlow."""

import numpy as np


def keys_kernel(x: np.ndarray) -> np.ndarray:
  """Returns Keys' cubic convolution kernel with a = -0.5."""
  x = np.abs(x)
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def matrix(size: int, results: int, start: float, stop: float, *, antialias: bool) -> np.ndarray:
  """Returns weights [results, size]: pixel centers of [start, stop] in `results` equal parts.

  Args:
    size: number of pixels in a row of the image.
    results: number of pixels to sample.
    start: left edge of the sampled interval, in pixels of the image.
    stop: its right edge.
    antialias: whether the kernel is as wide as a result where that is wider than a pixel.
  """
  scale = (stop - start) / results
  centers = start + (np.arange(results) + 0.5) * scale
  distances = (np.arange(size) + 0.5)[None, :] - centers[:, None]
  weights = keys_kernel(distances / (max(scale, 1.0) if antialias else 1.0))
  # At an edge, the weights of the pixels that are there add up to 1.
  return weights / weights.sum(axis=1, keepdims=True)


def to_uint8(values: np.ndarray) -> np.ndarray:
  """Rounds halves up and clamps to 0 and 255."""
  return np.clip(np.floor(values + 0.5), 0, 255)


def evaluation_images(
  image: np.ndarray, pixels: int, margin: int, resize: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the evaluation image as uint8, computed in both orders of its two passes.

  Each pass rounds, so the order changes some values; Pillow takes the one that costs less.

  Args:
    image: uint8 [height, width, 3].
    pixels: side of the result.
    margin: number of pixels by which the resized image exceeds it.
    resize: "squash" or "shorter_side".
  """
  height, width, _ = image.shape
  side = pixels + margin
  if resize == "squash":
    # All of the picture becomes a square, whose part from `first` on is the crop.
    first = (margin + 1) // 2
    rows = matrix(height, side, 0, height, antialias=True)[first : first + pixels]
    columns = matrix(width, side, 0, width, antialias=True)[first : first + pixels]
  else:
    shown = min(height, width) * pixels / side
    top, left = (height - shown) / 2, (width - shown) / 2
    rows = matrix(height, pixels, top, top + shown, antialias=True)
    columns = matrix(width, pixels, left, left + shown, antialias=True)

  def resize_rows(values):
    return to_uint8(np.einsum("cw,hwk->hck", columns, values))

  def resize_columns(values):
    return to_uint8(np.einsum("rh,hck->rck", rows, values))

  exact = image.astype(np.float64)
  return resize_columns(resize_rows(exact)), resize_rows(resize_columns(exact))
