"""Normalizes images by ImageNet's channel statistics."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnet.images.network_input import has_values, warn_caller

# Paper B, appendix, section 2: ImageNet's channel statistics on the scale of 0 to 255.
MEAN_RGB = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
STDDEV_RGB = tuple(255 * stddev for stddev in (0.229, 0.224, 0.225))


def normalize(images: Any) -> Any:
  """Subtracts the channels' means and divides by their standard deviations.

  Args:
    images: uint8 [..., height, width, 3], or other numbers from 0 to 255, NumPy or JAX; computed
      where the array lives.

  Returns:
    float32 of the same shape.

  Raises:
    ValueError: `images` are not an array of real numbers, the last axis is not that of three
      channels, or concrete values are not finite or not from 0 to 255.
  """
  if not isinstance(images, jax.Array | np.ndarray):
    raise ValueError(
      f"images are a value of type {type(images).__name__}; must be an array [..., height, width, "
      "3] with values from 0 to 255: nfnet.preprocess takes pictures of other kinds"
    )
  if images.ndim < 3 or images.shape[-1] != 3:
    raise ValueError(
      f"images have the shape {list(images.shape)}; must be [..., height, width, 3], with the "
      "channels last"
    )
  if not any(jnp.issubdtype(images.dtype, kind) for kind in (jnp.integer, jnp.floating)):
    raise ValueError(f"images are {images.dtype}; must be uint8, or floats from 0 to 255")
  if images.dtype != np.uint8 and has_values(images) and images.size:
    # NumPy does not trace, where a program that is being traced closes over its images.
    _check_values(np.asarray(images))
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = np.asarray(MEAN_RGB, np.float32).reshape(shape)
  stddev = np.asarray(STDDEV_RGB, np.float32).reshape(shape)
  return (images.astype(np.float32) - mean) / stddev


def _check_values(images: np.ndarray) -> None:
  lowest, highest = float(images.min()), float(images.max())
  if not (math.isfinite(lowest) and math.isfinite(highest)):
    raise ValueError("images have values that are NaN or infinite; must be from 0 to 255")
  if lowest < 0 or highest > 255:
    raise ValueError(
      f"images have values from {lowest:.6g} to {highest:.6g}; must be from 0 to 255: give images "
      "that are not normalized yet, scale those of more bits, and clip what resizing left outside"
    )
  if highest <= 1:
    warn_caller(
      "images have no value above 1, which looks like pictures from 0 to 1; give 255 * images"
    )
