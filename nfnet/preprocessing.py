"""From the bytes of an image file to what the network takes.

The policy of every image that enters this project, decided as ImageNet pipelines decide it:

- JPEG, PNG and WebP, recognized by their first bytes; a name's ending means nothing (ImageNet
  holds a PNG and CMYK files named .JPEG). Other formats are refused: some of them make the
  decoder start other programs.
- Orientation tags (EXIF) are ignored: the labels and crops of ImageNet were made without them.
- Transparency is dropped, not blended; CMYK becomes RGB without a color profile; of an animation
  the first frame counts.
- 16 bits a channel keep their upper 8. (Pillow alone does so for color, but clips grey at 255.)
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

# Paper B, section 2 of its appendix: ImageNet's channel statistics on the 0..255 scale.
MEAN_RGB = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
STDDEV_RGB = tuple(255 * stddev for stddev in (0.229, 0.224, 0.225))

# A few hundred bytes can claim to be any number of pixels. Pillow starts to warn here, at 256 MiB
# decoded; for a data set the warning is an error.
IMAGE_PIXELS_MAX = 89_478_485

_JPEG_START = b"\xff\xd8\xff"
_FORMATS = ("JPEG", "PNG", "WEBP")


class BadImageError(Exception):
  """Bytes that are no whole image of a supported format; the message says why."""


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes one image file.

  Args:
    encoded: the whole file.

  Returns:
    uint8 [height, width, 3], RGB. May be read-only.

  Raises:
    BadImageError: empty, cut short, damaged, too large, or no JPEG, PNG or WebP.
  """
  if not encoded:
    raise BadImageError("the file is empty")
  if encoded.startswith(_JPEG_START):
    try:
      return _decode_plain_jpeg(encoded)
    except ValueError:
      # Pillow has the last word: it takes CMYK, and files with stray bytes between their
      # segments, of which ImageNet has some, but not files that end too early.
      pass
  return _decode_with_pillow(encoded)


def normalize(images: Any) -> Any:
  """Subtracts the channels' means and divides by their standard deviations.

  Args:
    images: uint8 [..., height, width, 3], NumPy or JAX; computed where the array lives.

  Returns:
    float32 of the same shape.
  """
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = np.asarray(MEAN_RGB, np.float32).reshape(shape)
  stddev = np.asarray(STDDEV_RGB, np.float32).reshape(shape)
  return (images.astype(np.float32) - mean) / stddev


def resize_and_center_crop(image: np.ndarray, pixels: int, resize_margin: int) -> np.ndarray:
  """Makes an evaluation image: shorter side to `pixels + resize_margin`, then the center.

  Both happen in one bicubic resampling of the region that the crop shows, so that a very long
  and narrow image never exists enlarged.

  Args:
    image: uint8 [height, width, 3], of any size.
    pixels: side of the result.
    resize_margin: pixels by which the shorter side is longer than the crop.

  Returns:
    uint8 [pixels, pixels, 3].
  """
  height, width, _ = image.shape
  side = min(height, width) * pixels / (pixels + resize_margin)
  left, top = (width - side) / 2, (height - side) / 2
  return resample(image, (left, top, left + side, top + side), pixels)


def resample(image: np.ndarray, box: Sequence[int | float], pixels: int) -> np.ndarray:
  """Shows a region of an image as a square, bicubic, with antialiasing where it shrinks.

  Args:
    image: uint8 [height, width, 3].
    box: left, top, right, bottom of the region, in pixels of `image`, fractions allowed.
    pixels: side of the result.

  Returns:
    uint8 [pixels, pixels, 3], read-only.
  """
  resized = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC, box=box)
  return np.asarray(resized)


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray:
  height, width, _, _ = simplejpeg.decode_jpeg_header(encoded, strict=True)
  _check_pixels(width, height)
  return simplejpeg.decode_jpeg(encoded, colorspace="RGB", strict=True)


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
      _check_pixels(image.width, image.height)
      return _to_rgb(image)
  except (BadImageError, MemoryError):
    raise
  except Image.UnidentifiedImageError as error:
    raise BadImageError("not a JPEG, PNG or WebP image") from error
  # Damaged files make Pillow's parsers raise a dozen types, from struct.error to KeyError.
  except Exception as error:
    raise BadImageError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):
    wide = np.asarray(image).astype(np.uint16)
    grey = (wide >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
  if image.mode == "P":
    # Straight to RGB, Pillow warns about palettes with transparency.
    image = image.convert("RGBA")
  return np.asarray(image.convert("RGB"))


def _check_pixels(width: int, height: int) -> None:
  if width * height > IMAGE_PIXELS_MAX:
    raise BadImageError(
      f"{width} x {height} pixels are more than the {IMAGE_PIXELS_MAX:,} that are decoded"
    )
