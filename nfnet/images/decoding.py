"""Decodes image files.

Every image that enters this project is decoded here, as ImageNet pipelines do it:

- JPEG, PNG and WebP are recognized by their first bytes; the file name's extension is ignored
  (ImageNet holds a PNG and CMYK files named .JPEG). Other formats are refused, because some of
  them make the decoder start other programs.
- Orientation tags (EXIF) are ignored: the labels and crops of ImageNet were made without them.
- Transparency is dropped, not blended. CMYK becomes RGB without a color profile. Only the first
  frame of an animation is decoded.
- Channels of 16 bits keep their upper 8 bits. (Pillow itself does so for color, but clips gray
  at 255.)
- An image of more than `DECODED_PIXELS_MAX` pixels (16.8 million) is decoded at 1/2, 1/4 or 1/8 of
  its sides: a JPEG by a smaller inverse DCT, which is also faster, others by averaging.
- What decoding may cost is bounded before it begins (`nfnet.images.headers`). Of the images that
  take more than 64 MiB, a process decodes one at a time, however many threads it has.
"""

import contextlib
import errno
import io
import os
import threading
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from nfnet.foreign_files.regular_files import read_regular_file
from nfnet.images.headers import (
  ENCODED_BYTES_MAX,
  PNG_PIXELS_MAX,
  BadImageError,
  Header,
  read_header,
)
from nfnet.images.jpeg_segments import JPEG_START, jpeg_with_padded_scans
from nfnet.images.png_chunks import remove_metadata

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Names of files that are taken for images when a folder is listed end with one of these."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_LARGE_BYTES = 64 * 2**20
_STRIP_PIXELS = 2**20

_large_image = threading.Lock()


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes one image file.

  Args:
    encoded: content of the whole file.

  Returns:
    uint8 [height, width, 3], RGB, at most `DECODED_PIXELS_MAX` pixels; may be read-only.

  Raises:
    BadImageError: the content is empty, truncated, damaged, too large, or not JPEG, PNG or WebP.
  """
  header = read_header(encoded)
  with _one_large_image_at_a_time(header):
    if encoded.startswith(JPEG_START):
      return _decode_jpeg(encoded, header)
    return _decode_with_pillow(encoded, header)


def read_image_file(path: str | os.PathLike[str]) -> bytes:
  """Returns the content of an image file.

  Raises:
    OSError: the file cannot be read.
    BadImageError: it is too large for an image.
  """
  try:
    return read_regular_file(path, ENCODED_BYTES_MAX)
  except OSError as error:
    if error.errno == errno.EFBIG:
      raise BadImageError(f"the file {error.strerror}: make the image smaller") from error
    raise


def image_to_array(image: Image.Image) -> np.ndarray:
  """Converts an image of Pillow as those of files are converted.

  Args:
    image: image of any mode; one that is opened and not yet read is read now.

  Returns:
    uint8 [height, width, 3], RGB.
  """
  return _to_rgb(image, 1)


@contextlib.contextmanager
def _one_large_image_at_a_time(header: Header) -> Iterator[None]:
  with _large_image if header.decoding_bytes > _LARGE_BYTES else contextlib.nullcontext():
    yield


def _decode_jpeg(encoded: bytes, header: Header) -> np.ndarray:
  try:
    return simplejpeg.decode_jpeg(
      encoded,
      colorspace="RGB",
      # Of the scales that libjpeg offers, it takes the smallest that gives at least these sides.
      min_height=-(-header.height // header.reduction),
      min_width=-(-header.width // header.reduction),
      strict=True,
    )
  except ValueError as error:
    if _is_damage(str(error)):
      raise BadImageError(str(error)) from error
  # What is left is unusual subsampling, and files with stray bytes between their segments (ImageNet
  # has some of these). Pillow decodes both, but also truncated files.
  if header.width * header.height > PNG_PIXELS_MAX:
    raise BadImageError("a large JPEG with stray bytes or unusual subsampling; save it anew")
  image = _decode_with_pillow(encoded, header)
  # Bytes after the last code of a scan are skipped, but where codes are missing they become pixels.
  if not np.array_equal(image, _decode_with_pillow(jpeg_with_padded_scans(encoded), header)):
    raise BadImageError("the JPEG is truncated: a scan ends before its last code")
  return image


def _is_damage(message: str) -> bool:
  """Returns whether a message of libjpeg (read in libjpeg-turbo 3.1) says that data is missing."""
  return message.startswith("Premature end") or (
    message.startswith("Corrupt JPEG data") and "extraneous bytes" not in message
  )


def _decode_with_pillow(encoded: bytes, header: Header) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(remove_metadata(encoded)), formats=_FORMATS) as image:
      if image.size != (header.width, header.height):
        raise BadImageError("the image says two different sizes")
      if image.format == "JPEG" and header.reduction > 1:
        image.draft(None, (header.width // header.reduction, header.height // header.reduction))
        return _to_rgb(image, 1)
      return _to_rgb(image, header.reduction)
  except (BadImageError, MemoryError):
    raise
  except Image.UnidentifiedImageError as error:
    raise BadImageError("not a JPEG, PNG or WebP image") from error
  # On damaged files, Pillow's parsers raise a dozen types, from struct.error to KeyError.
  except Exception as error:
    raise BadImageError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image, reduction: int) -> np.ndarray:
  """Converts an image strip by strip, so that it is never in memory twice."""
  width, height = image.size
  image.load()
  rows = max(1, _STRIP_PIXELS // (width * reduction)) * reduction
  if rows >= height and reduction == 1:
    return _strip_to_rgb(image, 1)
  strips = [
    _strip_to_rgb(image.crop((0, top, width, min(top + rows, height))), reduction)
    for top in range(0, height, rows)
  ]
  return np.concatenate(strips)


def _strip_to_rgb(image: Image.Image, reduction: int) -> np.ndarray:
  if image.mode.startswith("I"):
    wide = np.asarray(image).astype(np.uint16)
    image = Image.fromarray((wide >> 8).astype(np.uint8))
  elif image.mode == "P":
    # Pillow warns when a palette with transparency is converted straight to RGB.
    image = image.convert("RGBA")
  image = image.convert("RGB")
  return np.asarray(image.reduce(reduction) if reduction > 1 else image)
