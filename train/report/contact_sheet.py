"""Draws a contact sheet: small images side by side, each with a caption."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nfnet.errors import escaped

CAPTION_LINES = 2

# Smaller images are enlarged by whole numbers, so that each of their pixels can be seen.
_CELL_PIXELS_MIN = 128
_FONT_PIXELS = 12
_LINE_PIXELS = 15
_GAP_PIXELS = 6
_BACKGROUND, _INK = (255, 255, 255), (0, 0, 0)


def draw_contact_sheet(
  images: np.ndarray, captions: Sequence[str], columns: int | None = None
) -> Image.Image:
  """Returns the sheet.

  Args:
    images: uint8 [n, height, width, 3], at least one.
    captions: text of each image, of up to `CAPTION_LINES` lines, cut off at the image's width.
    columns: number of images in a row; None makes the sheet about square.
  """
  count, height, width, _ = images.shape
  scale = -(-_CELL_PIXELS_MIN // max(height, width))
  cell_width = width * scale + _GAP_PIXELS
  cell_height = height * scale + CAPTION_LINES * _LINE_PIXELS + _GAP_PIXELS
  columns = min(count, columns or round((count * cell_height / cell_width) ** 0.5) or 1)
  rows = -(-count // columns)
  sheet = Image.new(
    "RGB", (columns * cell_width + _GAP_PIXELS, rows * cell_height + _GAP_PIXELS), _BACKGROUND
  )
  draw = ImageDraw.Draw(sheet)
  font = ImageFont.load_default(_FONT_PIXELS)
  for index, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
    left = _GAP_PIXELS + index % columns * cell_width
    top = _GAP_PIXELS + index // columns * cell_height
    enlarged = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    sheet.paste(Image.fromarray(enlarged), (left, top))
    for line, text in enumerate(caption.split("\n")[:CAPTION_LINES]):
      place = (left, top + height * scale + line * _LINE_PIXELS)
      draw.text(place, _fitting(escaped(text), font, width * scale), fill=_INK, font=font)
  return sheet


def _fitting(text: str, font, width: int) -> str:
  """Returns as much of a text as there is room for."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f"{text}...") > width:
    text = text[:-1]
  return f"{text}..."
