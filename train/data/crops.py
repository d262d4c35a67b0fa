"""The random resized crop of a training image, on the host."""

import math

import numpy as np
from PIL import Image

try:
  import cykooz_resizer
# There is no wheel for Linux on ARM; see the dependencies in pyproject.toml.
except ImportError:
  cykooz_resizer = None
else:
  # The filter of Pillow's BICUBIC, which gets wider when the image shrinks. It works in integers,
  # so the result is the same on all processors.
  BICUBIC = cykooz_resizer.ResizeOptions(
    cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
  )

_BOX_TRIES = 10


def random_resized_crop(
  image: np.ndarray,
  generator: np.random.Generator,
  pixels: int,
  *,
  area_min: float,
  aspect_ratio_max: float,
) -> np.ndarray:
  """Cuts out a random rectangle and resizes it to a square (Szegedy et al., arXiv 1409.4842).

  Args:
    image: uint8 [height, width, 3], of any size.
    generator: source of the draws.
    pixels: side of the result.
    area_min: smallest share of the area, in (0, 1].
    aspect_ratio_max: largest width / height and height / width, >= 1.

  Returns:
    uint8 [pixels, pixels, 3], bicubic, antialiased where the image shrinks, read-only.
  """
  height, width, _ = image.shape
  left, top, right, bottom = random_box(height, width, generator, area_min, aspect_ratio_max)
  return resize(image[top:bottom, left:right], pixels)


def random_box(
  height: int,
  width: int,
  generator: np.random.Generator,
  area_min: float,
  aspect_ratio_max: float,
) -> tuple[int, int, int, int]:
  """Draws the rectangle of a random crop.

  The share of the image's area is uniform in [area_min, 1], the logarithm of width / height uniform
  in [-log(aspect_ratio_max), log(aspect_ratio_max)], and the position uniform. After ten rectangles
  that do not fit, the largest centered one within the aspect ratios is taken.

  Args:
    height: height of the image in pixels.
    width: width of the image in pixels.
    generator: source of the draws.
    area_min: smallest share of the area, in (0, 1].
    aspect_ratio_max: largest width / height and height / width, >= 1.

  Returns:
    Left, top, right and bottom in pixels, the last two exclusive.
  """
  log_ratio_max = math.log(aspect_ratio_max)
  for _ in range(_BOX_TRIES):
    area = height * width * generator.uniform(area_min, 1.0)
    ratio = math.exp(generator.uniform(-log_ratio_max, log_ratio_max))
    # Even a 1x1 image has a rectangle of one pixel.
    box_width = max(1, round(math.sqrt(area * ratio)))
    box_height = max(1, round(math.sqrt(area / ratio)))
    if box_width <= width and box_height <= height:
      left = int(generator.integers(width - box_width + 1))
      top = int(generator.integers(height - box_height + 1))
      return left, top, left + box_width, top + box_height
  box_width = max(1, min(width, round(height * aspect_ratio_max)))
  box_height = max(1, min(height, round(width * aspect_ratio_max)))
  left, top = (width - box_width) // 2, (height - box_height) // 2
  return left, top, left + box_width, top + box_height


def resize(image: np.ndarray, pixels: int) -> np.ndarray:
  """Resizes an image to a square by cykooz-resizer, or by Pillow where that is not installed.

  Pillow takes five times as long. `tests/train/data/test_crops.py` bounds the difference.

  Args:
    image: uint8 [height, width, 3], of any size.
    pixels: side of the result.

  Returns:
    uint8 [pixels, pixels, 3], read-only.
  """
  if cykooz_resizer is None:
    return resize_by_pillow(image, pixels)
  height, width, _ = image.shape
  pixel_type = cykooz_resizer.PixelType.U8x3
  source = cykooz_resizer.ImageData(width, height, pixel_type, image.tobytes())
  resized = cykooz_resizer.ImageData(pixels, pixels, pixel_type)
  # A new resizer for each image, because threads must not share one.
  cykooz_resizer.Resizer().resize(source, resized, BICUBIC)
  return np.frombuffer(resized.get_buffer(), np.uint8).reshape(pixels, pixels, 3)


def resize_by_pillow(image: np.ndarray, pixels: int) -> np.ndarray:
  """Resizes an image to a square as `resize` does, with the same filter in the same order.

  Args:
    image: uint8 [height, width, 3], of any size.
    pixels: side of the result.

  Returns:
    uint8 [pixels, pixels, 3], read-only. Of photographs, less than 1 % of the values differ
    from those of cykooz-resizer, by at most 2 of 255.
  """
  # Both round to whole numbers between the directions, of which Pillow by itself begins with the
  # other one.
  width = image.shape[1]
  lower = Image.fromarray(image).resize((width, pixels), Image.Resampling.BICUBIC)
  return np.asarray(lower.resize((pixels, pixels), Image.Resampling.BICUBIC))
