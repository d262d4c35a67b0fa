"""Resizes and crops decoded images for evaluation, in one of two ways.

"squash" resizes both sides to the crop's side plus a margin, whatever the picture's proportions,
and takes the crop from the center. So do the code released with paper B (`resize_crop_32`: a margin
of 32), whose published accuracies were measured on such images, and timm for its `dm_nfnet_f*`
(`crop_mode "squash"`; its `crop_pct` amounts to margins of 26 to 31). Of a picture of 3:2 at 256 px
and a margin of 32, 89 % of each side is seen.

"shorter_side" resizes the shorter side to that length and keeps the proportions. Of the same
picture, 89 % of the height and 59 % of the width are seen.

Both use Pillow's bicubic filter (Keys, a = -0.5), which is antialiased, as it widens with the
reduction, and which rounds to uint8 after each of its two passes. timm and the notebook released
with paper B call the same function, so with the same margin "squash" gives their pixels. The
released evaluation calls TensorFlow's bicubic filter, which has the same a, but is not antialiased
and neither rounds nor clamps its results.
"""

from typing import Literal

import numpy as np
from PIL import Image

EvaluationResize = Literal["squash", "shorter_side"]


def resize_and_center_crop(
  image: np.ndarray, pixels: int, resize_margin: int, resize: EvaluationResize
) -> np.ndarray:
  """Makes an evaluation image: resizes to `pixels + resize_margin`, then crops from the center.

  Args:
    image: uint8 [height, width, 3], of any size.
    pixels: side of the result.
    resize_margin: number of pixels by which the resized image exceeds the crop.
    resize: whether "squash" resizes both sides, or "shorter_side" one and the other in proportion.

  Returns:
    uint8 [pixels, pixels, 3], read-only.
  """
  function = _squash if resize == "squash" else _keep_proportions
  return function(Image.fromarray(image), pixels, resize_margin)


def _squash(image: Image.Image, pixels: int, resize_margin: int) -> np.ndarray:
  side = pixels + resize_margin
  resized = image.resize((side, side), Image.Resampling.BICUBIC)
  # Half of an odd margin is rounded up, as in the released code.
  start = (resize_margin + 1) // 2
  return np.asarray(resized)[start : start + pixels, start : start + pixels]


def _keep_proportions(image: Image.Image, pixels: int, resize_margin: int) -> np.ndarray:
  # Both steps happen in a single resampling of the region that the crop shows, so that a very long
  # and narrow image is never enlarged as a whole.
  width, height = image.size
  side = min(height, width) * pixels / (pixels + resize_margin)
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  return np.asarray(image.resize((pixels, pixels), Image.Resampling.BICUBIC, box=box))
