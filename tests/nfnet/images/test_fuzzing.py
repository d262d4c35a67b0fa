"""Mutated image files give an image or the one error, in bounded time and memory."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from nfnet.images.decoding import BadImageError, decode_image
from nfnet.images.headers import DECODED_PIXELS_MAX
from tests import fuzzing
from tests.nfnet.images.crafted_files import flat_jpeg, png

COLOR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))


def encode(image_format, mode="RGB", **options):
  encoded = io.BytesIO()
  COLOR.convert(mode).save(encoded, image_format, **options)
  return encoded.getvalue()


SEEDS = {
  "JPEG": [
    encode("JPEG"),
    encode("JPEG", progressive=True, subsampling=0),
    encode("JPEG", "L", progressive=True),
    encode("JPEG", "CMYK"),
    encode("JPEG", exif=b"Exif\0\0" + bytes(50), comment=b"text"),
    flat_jpeg(3_000, 3_000),
    flat_jpeg(1_000, 1_000, apart=20),
  ],
  "PNG": [
    encode("PNG"),
    encode("PNG", "P", transparency=bytes([0, 100, 255])),
    encode("PNG", "LA"),
    encode("PNG", save_all=True, append_images=[COLOR.rotate(180)]),
    png(8, 8, 16, 6, bytes(8 * 65), is_interlaced=True),
    png(3_000, 3_000, 1, 0, bytes(3_000 * 376)),
  ],
  "WebP": [
    encode("WEBP"),
    encode("WEBP", lossless=True),
    encode("WEBP", "RGBA", exif=b"Exif\0\0" + bytes(50)),
    encode("WEBP", save_all=True, append_images=[COLOR.rotate(180)]),
  ],
}


def read(content):
  """Decodes an image, and turns the error for images into the one that the harness expects."""
  try:
    image = decode_image(content)
  except BadImageError as error:
    raise UserError(str(error)) from error
  assert image.dtype == np.uint8
  assert image.ndim == 3
  assert image.shape[2] == 3
  assert 0 < image.shape[0] * image.shape[1] <= DECODED_PIXELS_MAX


@pytest.mark.parametrize("image_format", SEEDS)
@pytest.mark.parametrize(
  "count", [50, pytest.param(10_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_mutated_images(image_format, count):
  mutations = fuzzing.mutations(SEEDS[image_format], random.Random(0))
  findings = fuzzing.run_bounded(read, [next(mutations) for _ in range(count)])
  assert not findings, fuzzing.describe(findings)
