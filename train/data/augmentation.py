"""Random crops and flips of training images, on the host.

What is drawn for an image depends on the seed of the run, the epoch, the image's place in the data
set and how often it has come in the epoch, and on nothing else: not on workers, hosts, or the batch
it falls into.
"""

import math

import cykooz_resizer
import numpy as np

_CROP_TRIES = 10
# The filter of Pillow's BICUBIC, as wide where it shrinks; integers in and out, the same on all
# processors.
_BICUBIC = cykooz_resizer.ResizeOptions(
  cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
)


def image_generator(seed: int, epoch: int, index: int, repetition: int = 0) -> np.random.Generator:
  """Returns the source of all random draws for one image in one epoch.

  Args:
    seed: of the run, >= 0.
    epoch: passes over the data before this one.
    index: of the record in its split.
    repetition: of the image in the epoch.
  """
  return np.random.default_rng((seed, epoch, index, repetition))


def random_resized_crop(
  image: np.ndarray,
  generator: np.random.Generator,
  pixels: int,
  *,
  area_min: float,
  aspect_ratio_max: float,
) -> np.ndarray:
  """Cuts out a random rectangle and resizes it to a square (Szegedy et al., arXiv 1409.4842).

  Area is uniform in [area_min, 1] of the image's, the logarithm of width / height uniform in
  [-log(aspect_ratio_max), log(aspect_ratio_max)], the position uniform. After ten rectangles that
  do not fit, the largest centered one within the aspect ratios is taken.

  Args:
    image: uint8 [height, width, 3], of any size.
    generator: source of the draws.
    pixels: side of the result.
    area_min: smallest share of the area, in (0, 1].
    aspect_ratio_max: largest width / height and height / width, >= 1.

  Returns:
    uint8 [pixels, pixels, 3], bicubic with antialiasing where it shrinks, read-only.
  """
  height, width, _ = image.shape
  left, top, right, bottom = _random_box(height, width, generator, area_min, aspect_ratio_max)
  return _resize(image[top:bottom, left:right], pixels)


def random_horizontal_flip(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """Mirrors left and right in half of the draws; uint8 [height, width, 3] in and out."""
  if generator.random() >= 0.5:
    return image
  # Channel by channel: NumPy copies image[:, ::-1], as a batch would, three bytes at a time (259
  # against 60 us for 224 pixels).
  mirrored = np.empty_like(image)
  for channel in range(image.shape[2]):
    mirrored[:, :, channel] = image[:, ::-1, channel]
  return mirrored


def _resize(image: np.ndarray, pixels: int) -> np.ndarray:
  """Five times as fast as Pillow; `tests/train/data/test_augmentation.py` bounds the difference."""
  height, width, _ = image.shape
  pixel_type = cykooz_resizer.PixelType.U8x3
  source = cykooz_resizer.ImageData(width, height, pixel_type, image.tobytes())
  resized = cykooz_resizer.ImageData(pixels, pixels, pixel_type)
  # One each time: it is not to be shared by threads.
  cykooz_resizer.Resizer().resize(source, resized, _BICUBIC)
  return np.frombuffer(resized.get_buffer(), np.uint8).reshape(pixels, pixels, 3)


def _random_box(
  height: int,
  width: int,
  generator: np.random.Generator,
  area_min: float,
  aspect_ratio_max: float,
) -> tuple[int, int, int, int]:
  log_ratio_max = math.log(aspect_ratio_max)
  for _ in range(_CROP_TRIES):
    area = height * width * generator.uniform(area_min, 1.0)
    ratio = math.exp(generator.uniform(-log_ratio_max, log_ratio_max))
    # A 1x1 image has rectangles of one pixel, never of none.
    crop_width = max(1, round(math.sqrt(area * ratio)))
    crop_height = max(1, round(math.sqrt(area / ratio)))
    if crop_width <= width and crop_height <= height:
      left = int(generator.integers(width - crop_width + 1))
      top = int(generator.integers(height - crop_height + 1))
      return left, top, left + crop_width, top + crop_height
  crop_width = max(1, min(width, round(height * aspect_ratio_max)))
  crop_height = max(1, min(height, round(width * aspect_ratio_max)))
  left, top = (width - crop_width) // 2, (height - crop_height) // 2
  return left, top, left + crop_width, top + crop_height
