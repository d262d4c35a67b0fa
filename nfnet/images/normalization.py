"""Normalizes images by ImageNet's channel statistics."""

import warnings
from typing import Any

import numpy as np

from nfnet.images.network_input import has_values

# Paper B, appendix, section 2: ImageNet's channel statistics on the scale of 0 to 255.
MEAN_RGB = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
STDDEV_RGB = tuple(255 * stddev for stddev in (0.229, 0.224, 0.225))


def normalize(images: Any) -> Any:
  """Subtracts the channels' means and divides by their standard deviations.

  Args:
    images: uint8 [..., height, width, 3], or floats from 0 to 255, NumPy or JAX; computed where the
      array lives.

  Returns:
    float32 of the same shape.

  Raises:
    ValueError: the last axis is not that of three channels.
  """
  if images.ndim < 3 or images.shape[-1] != 3:
    raise ValueError(
      f"images have the shape {list(images.shape)}; must be [..., height, width, 3], with the "
      "channels last"
    )
  if images.dtype.kind == "f" and has_values(images) and images.size and images.max() <= 1:
    warnings.warn(
      "images have no value above 1, which looks like pictures from 0 to 1; give 255 * images",
      stacklevel=2,
    )
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = np.asarray(MEAN_RGB, np.float32).reshape(shape)
  stddev = np.asarray(STDDEV_RGB, np.float32).reshape(shape)
  return (images.astype(np.float32) - mean) / stddev
