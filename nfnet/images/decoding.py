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
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

from nfnet.images.png_chunks import remove_metadata

# A few hundred bytes can claim to be any number of pixels. At this number (256 MiB decoded) Pillow
# starts to warn; in a data set, so large an image is an error.
IMAGE_PIXELS_MAX = 89_478_485

_JPEG_START = b"\xff\xd8\xff"
_FORMATS = ("JPEG", "PNG", "WEBP")


class BadImageError(Exception):
  """Reports bytes that are not a complete image of a supported format; the message says why."""


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes one image file.

  Args:
    encoded: content of the whole file.

  Returns:
    uint8 [height, width, 3], RGB; may be read-only.

  Raises:
    BadImageError: the content is empty, truncated, damaged, too large, or not JPEG, PNG or WebP.
  """
  if not encoded:
    raise BadImageError("the file is empty")
  if encoded.startswith(_JPEG_START):
    try:
      return _decode_plain_jpeg(encoded)
    except ValueError:
      # Pillow decides: it accepts CMYK, and files with stray bytes between their segments (ImageNet
      # has some of these), but not truncated files.
      pass
  return _decode_with_pillow(encoded)


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray:
  height, width, _, _ = simplejpeg.decode_jpeg_header(encoded, strict=True)
  _check_pixels(width, height)
  return simplejpeg.decode_jpeg(encoded, colorspace="RGB", strict=True)


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(remove_metadata(encoded)), formats=_FORMATS) as image:
      _check_pixels(image.width, image.height)
      return _to_rgb(image)
  except (BadImageError, MemoryError):
    raise
  except Image.UnidentifiedImageError as error:
    raise BadImageError("not a JPEG, PNG or WebP image") from error
  # On damaged files, Pillow's parsers raise a dozen types, from struct.error to KeyError.
  except Exception as error:
    raise BadImageError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):
    wide = np.asarray(image).astype(np.uint16)
    gray = (wide >> 8).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
  if image.mode == "P":
    # Pillow warns when a palette with transparency is converted straight to RGB.
    image = image.convert("RGBA")
  return np.asarray(image.convert("RGB"))


def _check_pixels(width: int, height: int) -> None:
  if width * height > IMAGE_PIXELS_MAX:
    raise BadImageError(
      f"{width} x {height} pixels exceed the limit of {IMAGE_PIXELS_MAX:,} pixels per image"
    )
