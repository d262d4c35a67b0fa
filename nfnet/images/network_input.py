"""Checks that an array is what a network takes: normalized images in floating point, NHWC.

Shape and dtype are known while a program is traced, so they are checked there too. Values are
looked at only where they are at hand: in a NumPy array, or in a JAX array that is not traced.
"""

import math
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NORMALIZED_MAX = 10.0
"""Bound of what passes for normalized. Of a picture, 2.64 is the largest value, and normally
distributed numbers, which stand for images in tests, are within 6."""
_CURE = "nfnet.preprocess makes images of pictures, nfnet.normalize of a uint8 array"


def check_network_input(images: Any) -> None:
  """Warns of images that look as if their values were from 0 to 1, and refuses all other mistakes.

  Args:
    images: what the caller gives as normalized images, [images, height, width, 3].

  Raises:
    ValueError: `images` are not an array, not floating point, not NHWC, empty, not finite, or from
      0 to 255.
  """
  if not isinstance(images, jax.Array | np.ndarray):
    raise ValueError(
      f"images are a value of type {type(images).__name__}; must be an array of floats [images, "
      f"height, width, 3]: {_CURE}"
    )
  what = f"images are {images.dtype} {list(images.shape)}"
  if images.ndim == 3 and images.shape[-1] == 3:
    raise ValueError(f"{what}; must be [images, height, width, 3]: give images[None] for one image")
  if images.ndim != 4 or images.shape[3] != 3:
    is_nchw = images.ndim == 4 and images.shape[1] == 3
    cure = "images.transpose(0, 2, 3, 1) has the channels last" if is_nchw else _CURE
    raise ValueError(f"{what}; must be [images, height, width, 3]: {cure}")
  if 0 in images.shape:
    raise ValueError(f"{what}; must not be empty")
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f"{what}; must be normalized floats: {_CURE}")
  if has_values(images):
    # NumPy does not trace, where a program that is being traced closes over its images.
    _check_values(np.asarray(images))


def has_values(images: jax.Array | np.ndarray) -> bool:
  """Returns whether the values of an array are at hand: it is not traced, and all of it is here."""
  return isinstance(images, np.ndarray) or (
    not isinstance(images, jax.core.Tracer) and images.is_fully_addressable
  )


def warn_caller(message: str) -> None:
  """Warns of the line that called this package, as `skip_file_prefixes` does since Python 3.12."""
  package, _, _ = __name__.partition(".")
  frame, level = sys._getframe(), 1
  while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
    frame, level = frame.f_back, level + 1
  warnings.warn(message, stacklevel=level)


def _check_values(images: np.ndarray) -> None:
  lowest, highest = float(images.min()), float(images.max())
  if not (math.isfinite(lowest) and math.isfinite(highest)):
    raise ValueError(f"images have values that are NaN or infinite: {_CURE}")
  if max(-lowest, highest) > _NORMALIZED_MAX:
    raise ValueError(
      f"images have values from {lowest:.6g} to {highest:.6g}, so they are not normalized; values "
      f"of pictures are from -2.12 to 2.64: {_CURE}"
    )
  # A gray and even picture may be in this range after normalization as well.
  if lowest >= 0 and highest <= 1 and highest - lowest > 0.5:
    warn_caller(
      f"images have values from {lowest:.6g} to {highest:.6g}, which looks like pictures from 0 to "
      "1 that are not normalized; nfnet.normalize(255 * images) normalizes them"
    )
