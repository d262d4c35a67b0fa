"""RandAugment: a few random distortions of a training image, on the host.

Cubuk et al., https://arxiv.org/abs/1909.13719. The sixteen operations and what a magnitude means
are those of the code released with paper B (magnitudes 5, 10 and 15, four layers; paper B, appendix
A): each layer draws one operation, and all have the same magnitude. 10 stands for what was once the
strongest; 15 goes beyond it. Some operations grow milder with the magnitude there (posterize keeps
more bits, solarize starts at a higher value), and so they do here.

There are a few differences from that code:

- Contrast pulls towards the mean of the image. There it pulls towards the number of pixels / 256.
- Images are distorted before they are mixed (`train.step.mixing`), there afterwards.
- Pillow rounds where TensorFlow cuts off.
- Shifts and cut-out squares, which are numbers of pixels, take half of an image's side at most. The
  paper's images are large enough for that to change nothing.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

_GREY = (128, 128, 128)
"""Where a moved image leaves nothing."""
_ROTATION_DEGREES = 30.0
_SHEAR = 0.3
_TRANSLATION_PIXELS = 100.0
_CUTOUT_PIXELS = 40.0
"""Half a side."""
_SOLARIZE_ADDITION = 110.0
_POSTERIZE_BITS = 4.0


def rand_augment(
  image: np.ndarray, generator: np.random.Generator, *, layers: int, magnitude: float
) -> np.ndarray:
  """Distorts an image `layers` times, each time in one of sixteen ways.

  Args:
    image: uint8 [height, width, 3].
    generator: source of the draws.
    layers: distortions, one after the other.
    magnitude: of all of them; 10 is strong.

  Returns:
    uint8 of the same shape.
  """
  distorted = Image.fromarray(image)
  for _ in range(layers):
    operation = OPERATIONS[generator.integers(len(OPERATIONS))]
    distorted = operation(distorted, magnitude / 10, generator)
  return np.asarray(distorted)


def _autocontrast(image: Image.Image, *_) -> Image.Image:
  return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, *_) -> Image.Image:
  return ImageOps.equalize(image)


def _invert(image: Image.Image, *_) -> Image.Image:
  return ImageOps.invert(image)


def _posterize(image: Image.Image, strength: float, _) -> Image.Image:
  # Without any bit, below a magnitude of 2.5, nothing would be left.
  return ImageOps.posterize(image, min(8, max(1, int(strength * _POSTERIZE_BITS))))


def _solarize(image: Image.Image, strength: float, _) -> Image.Image:
  return ImageOps.solarize(image, int(strength * 256))


def _solarize_add(image: Image.Image, strength: float, _) -> Image.Image:
  added = int(strength * _SOLARIZE_ADDITION)
  return image.point(
    [min(255, value + added) if value < 128 else value for value in range(256)] * 3
  )


def _color(image: Image.Image, strength: float, _) -> Image.Image:
  return ImageEnhance.Color(image).enhance(_enhancement(strength))


def _contrast(image: Image.Image, strength: float, _) -> Image.Image:
  return ImageEnhance.Contrast(image).enhance(_enhancement(strength))


def _brightness(image: Image.Image, strength: float, _) -> Image.Image:
  return ImageEnhance.Brightness(image).enhance(_enhancement(strength))


def _sharpness(image: Image.Image, strength: float, _) -> Image.Image:
  return ImageEnhance.Sharpness(image).enhance(_enhancement(strength))


def _enhancement(strength: float) -> float:
  """1 leaves an image as it is."""
  return strength * 1.8 + 0.1


def _rotate(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
  degrees = _either_way(strength * _ROTATION_DEGREES, generator)
  return image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=_GREY)


def _shear_x(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
  return _transform(image, (1, _either_way(strength * _SHEAR, generator), 0, 0, 1, 0))


def _shear_y(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
  return _transform(image, (1, 0, 0, _either_way(strength * _SHEAR, generator), 1, 0))


def _translate_x(
  image: Image.Image, strength: float, generator: np.random.Generator
) -> Image.Image:
  pixels = _either_way(_translation_pixels(strength, image.width), generator)
  return _transform(image, (1, 0, pixels, 0, 1, 0))


def _translate_y(
  image: Image.Image, strength: float, generator: np.random.Generator
) -> Image.Image:
  pixels = _either_way(_translation_pixels(strength, image.height), generator)
  return _transform(image, (1, 0, 0, 0, 1, pixels))


def _translation_pixels(strength: float, side: int) -> float:
  return min(strength * _TRANSLATION_PIXELS, side // 2)


def _cutout(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
  half = min(int(strength * _CUTOUT_PIXELS), min(image.size) // 4)
  x, y = int(generator.integers(image.width)), int(generator.integers(image.height))
  if half:
    image = image.copy()
    # Pillow's rectangles contain their last row and column.
    box = (x - half, y - half, x + half - 1, y + half - 1)
    ImageDraw.Draw(image).rectangle(box, fill=_GREY)
  return image


def _transform(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    coefficients,
    resample=Image.Resampling.NEAREST,
    fillcolor=_GREY,
  )


def _either_way(value: float, generator: np.random.Generator) -> float:
  return value if generator.random() < 0.5 else -value


Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]
"""(RGB image, magnitude / 10, source of draws) -> image of the same size."""

OPERATIONS: tuple[Operation, ...] = (
  _autocontrast,
  _equalize,
  _invert,
  _rotate,
  _posterize,
  _solarize,
  _color,
  _contrast,
  _brightness,
  _sharpness,
  _shear_x,
  _shear_y,
  _translate_x,
  _translate_y,
  _cutout,
  _solarize_add,
)
"""One of these is drawn for each layer, all with the same probability."""
