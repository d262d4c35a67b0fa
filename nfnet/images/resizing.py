"""Resizes and crops decoded images for evaluation."""

import numpy as np
from PIL import Image


def resize_and_center_crop(image: np.ndarray, pixels: int, resize_margin: int) -> np.ndarray:
  """Makes an evaluation image: resizes the shorter side to `pixels + resize_margin`, then crops.

  Both happen in a single bicubic, antialiased resampling of the region that the crop shows, so that
  a very long and narrow image is never enlarged as a whole.

  Args:
    image: uint8 [height, width, 3], of any size.
    pixels: side of the result.
    resize_margin: number of pixels by which the resized shorter side exceeds the crop.

  Returns:
    uint8 [pixels, pixels, 3], read-only.
  """
  height, width, _ = image.shape
  side = min(height, width) * pixels / (pixels + resize_margin)
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  resized = Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC, box=box)
  return np.asarray(resized)
