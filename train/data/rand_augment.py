"""RandAugment: a few random distortions of a training image, on the host.

Cubuk et al., https://arxiv.org/abs/1909.13719. The sixteen operations and the meaning of a
magnitude are those of the code released with paper B (magnitudes 5, 10 and 15, four layers; paper
B, appendix A): each layer draws one operation, and all have the same magnitude. 10 is the strongest
magnitude of the original paper; 15 goes beyond it. As in the released code, some operations grow
milder with the magnitude (posterize keeps more bits, solarize starts at a higher value).

There are a few differences from that code:

- Contrast scales distances to the image's mean; in that code, to the number of pixels / 256.
- Images are distorted before they are mixed (`train.step.mixing`); in that code, afterwards.
- Pillow rounds where TensorFlow truncates.
- Shifts and cut-out squares, which are numbers of pixels, take at most half of an image's side. The
  paper's images are so large that this makes no difference.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

_GREY = (128, 128, 128)
"""Color of the pixels that a moved image leaves empty."""
_ROTATION_DEGREES = 30.0
_SHEAR = 0.3
_TRANSLATION_PIXELS = 100.0
_CUTOUT_PIXELS = 40.0
"""Half of the side of the square."""
_SOLARIZE_ADDITION = 110.0
_POSTERIZE_BITS = 4.0


def _autocontrast(image: Image.Image, *_) -> Image.Image:
  return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, *_) -> Image.Image:
  return ImageOps.equalize(image)


def _invert(image: Image.Image, *_) -> Image.Image:
  return ImageOps.invert(image)


def _posterize(image: Image.Image, strength: float, _) -> Image.Image:
  # At least one bit: below a magnitude of 2.5, none would be left, and so nothing of the image.
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
  """Returns the factor for Pillow's enhancers; 1 leaves an image unchanged."""
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
    # Pillow's rectangles include their last row and column.
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
"""A function (RGB image, magnitude / 10, source of draws) -> image of the same size."""

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
"""The sixteen operations, one of which each layer draws, all with the same probability."""


def rand_augment(
  image: np.ndarray,
  generator: np.random.Generator,
  *,
  layers: int,
  magnitude: float,
  operations: Sequence[Operation] = OPERATIONS,
) -> np.ndarray:
  """Distorts an image `layers` times, each time by one of the operations.

  Args:
    image: uint8 [height, width, 3].
    generator: source of the draws.
    layers: number of distortions, one after the other.
    magnitude: strength of each of them; 10 is strong.
    operations: operations to draw from.

  Returns:
    uint8 of the same shape.
  """
  distorted = Image.fromarray(image)
  for _ in range(layers):
    operation = operations[generator.integers(len(operations))]
    distorted = operation(distorted, magnitude / 10, generator)
  return np.asarray(distorted)
