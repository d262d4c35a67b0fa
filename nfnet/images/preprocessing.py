"""Turns pictures into what a network takes: decodes, resizes, crops and normalizes them.

A picture is the path of a file, its bytes, a `PIL.Image.Image` or a uint8 array.
"""

import os
from collections.abc import Iterable
from typing import Any, get_args

import jax
import numpy as np
from PIL import Image

from nfnet.errors import (
  UserError,
  check_choice,
  checked_whole_number,
  format_count,
  quoted,
  short_text,
)
from nfnet.images.decoding import BadImageError, decode_image, image_to_array, read_image_file
from nfnet.images.normalization import normalize
from nfnet.images.resizing import EvaluationResize, resize_and_center_crop
from nfnet.system.paths import local_path, path_text
from nfnet.variants import PIXELS_MAX

RESIZE_MARGIN = 32
"""Paper B's evaluation: pixels by which a resized image exceeds the crop."""
RESIZE: EvaluationResize = "squash"
"""Paper B's evaluation: the way of resizing."""

Picture = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | jax.Array
"""One picture."""

_NO_ARRAY = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


def preprocess(
  pictures: Picture | Iterable[Picture],
  pixels: int,
  *,
  resize: EvaluationResize = RESIZE,
  resize_margin: int = RESIZE_MARGIN,
) -> np.ndarray:
  """Returns pictures as a network takes them: resized, cropped from the center and normalized.

  Args:
    pictures: one picture or several. A picture is the path of a JPEG, PNG or WebP file, the bytes
      of such a file, a `PIL.Image.Image`, or an RGB array, uint8 [height, width, 3].
    pixels: side of the images, for example `nfnet.VARIANTS["F0"].test_pixels`.
    resize: way of resizing, see `nfnet.images.resizing`.
    resize_margin: pixels by which a resized picture exceeds the crop. The defaults of both are
      those of the released weights' evaluation.

  Returns:
    float32 [pictures, pixels, pixels, 3].

  Raises:
    UserError: a file is missing or is not a valid image.
    ValueError: an argument is of another kind or outside of its bounds.
  """
  check_resizing(pixels, resize, resize_margin)
  if isinstance(pictures, _NO_ARRAY) or getattr(pictures, "ndim", 4) != 4:
    pictures = [pictures]
  if not isinstance(pictures, Iterable):
    raise ValueError(f"pictures are {quoted(pictures)}; must be one picture or several")
  images = [
    _preprocess_picture(picture, pixels, resize=resize, resize_margin=resize_margin)
    for picture in pictures
  ]
  if not images:
    raise ValueError("there are no pictures; give at least one")
  return np.stack(images)


def check_resizing(pixels: Any, resize: Any, resize_margin: Any) -> None:
  """Checks what says how pictures are resized; see `preprocess`.

  Raises:
    ValueError: an argument is of another kind or outside of its bounds.
  """
  checked_whole_number("pixels", pixels, 1, PIXELS_MAX)
  checked_whole_number("resize_margin", resize_margin, 0, PIXELS_MAX)
  check_choice("resize", resize, get_args(EvaluationResize))


def _preprocess_picture(
  picture: Picture, pixels: int, *, resize: EvaluationResize, resize_margin: int
) -> np.ndarray:
  """Returns one picture as float32 [pixels, pixels, 3]; see `preprocess`."""
  return normalize(
    resize_and_center_crop(_decoded(picture), int(pixels), int(resize_margin), resize)
  )


def _decoded(picture: Any) -> np.ndarray:
  """Returns uint8 [height, width, 3]."""
  if isinstance(picture, str | os.PathLike):
    return _read(path_text("picture", picture))
  if isinstance(picture, bytes | bytearray | memoryview):
    content = bytes(picture)
    try:
      return decode_image(content)
    except BadImageError as error:
      size = format_count(len(content), "byte")
      raise UserError(f"an image of {size} cannot be decoded: {error}") from error
  if isinstance(picture, Image.Image):
    if picture.mode == "F":
      raise ValueError(
        "a picture is an image of Pillow of the mode F, whose values have no known bounds; give a "
        "uint8 array or an image of another mode"
      )
    if 0 in picture.size:
      width, height = picture.size
      raise ValueError(
        f"a picture is an image of Pillow of {width} x {height} pixels; must not be empty"
      )
    try:
      return image_to_array(picture)
    # A file that Pillow has opened is read only now, and its parsers raise a dozen types.
    except Exception as error:
      raise UserError(f"an image of Pillow cannot be decoded: {short_text(error)}") from error
  if not isinstance(picture, np.ndarray | jax.Array):
    raise ValueError(
      f"a picture is a value of type {type(picture).__name__}; must be a path, the bytes of a "
      "file, a PIL image or a uint8 array [height, width, 3]"
    )
  if isinstance(picture, jax.core.Tracer):
    raise ValueError(
      "a picture is traced: call nfnet.preprocess outside of functions that JAX transforms; "
      "nfnet.normalize works in them"
    )
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
    raise ValueError(
      f"a picture is {picture.dtype} {list(picture.shape)}; must be uint8 [height, width, 3] "
      "from 0 to 255, RGB, not empty"
    )
  return np.asarray(picture)


def _read(path: str) -> np.ndarray:
  # A file that is there is read, whatever it is called.
  if not os.path.exists(path):
    path = local_path("image", path)
  try:
    return decode_image(read_image_file(path))
  except OSError as error:
    raise UserError(f"image {path!r} cannot be read: {error.strerror}") from error
  except BadImageError as error:
    raise UserError(f"image {path!r} cannot be decoded: {error}") from error
