"""Normalizes images by ImageNet's channel statistics."""

from typing import Any

import numpy as np

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
  """
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = np.asarray(MEAN_RGB, np.float32).reshape(shape)
  stddev = np.asarray(STDDEV_RGB, np.float32).reshape(shape)
  return (images.astype(np.float32) - mean) / stddev
