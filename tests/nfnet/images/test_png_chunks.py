"""Metadata of any kind and size leaves sound pixels decodable, and damaged ones damaged."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from nfnet.images.decoding import BadImageError, decode_image
from nfnet.images.png_chunks import remove_metadata
from tests.nfnet.images.crafted_files import chunk

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def encode(image, **options):
  encoded = io.BytesIO()
  image.save(encoded, "PNG", **options)
  return encoded.getvalue()


def insert(png, *chunks, before=b"IDAT"):
  place = png.index(before) - 4
  return png[:place] + b"".join(chunks) + png[place:]


PNG = encode(Image.fromarray(PIXELS))
LONG = zlib.compress(bytes(2**21))
METADATA = {
  "compressed text of 2 MiB": chunk(b"zTXt", b"key\0\0" + LONG),
  "international text of 2 MiB": chunk(b"iTXt", b"key\0\1\0\0\0" + LONG),
  "text of 65 MiB": chunk(b"tEXt", b"key\0" + bytes(65 * 2**20)),
  "text that is not a zlib stream": chunk(b"zTXt", b"key\0\0nonsense"),
  "text of an unknown compression": chunk(b"zTXt", b"key\0\7nonsense"),
  "color profile of 2 MiB": chunk(b"iCCP", b"key\0\0" + LONG),
  "color profile that is none": chunk(b"iCCP", b"nonsense"),
  "EXIF that is none": chunk(b"eXIf", b"nonsense" * 2**18),
  "short gamma": chunk(b"gAMA", b"\0"),
  "short resolution": chunk(b"pHYs", b"\0"),
  "private chunk": chunk(b"abCD", bytes(2**21)),
  "wrong checksum": chunk(b"tEXt", b"key\0text", checksum=0),
  "animation that is none": chunk(b"acTL", b"") + chunk(b"fcTL", b"") + chunk(b"fdAT", b""),
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_does_not_matter(kind, before):
  png = insert(PNG, METADATA[kind], before=before)
  assert remove_metadata(png) == PNG
  np.testing.assert_array_equal(decode_image(png), PIXELS)


def test_many_chunks_between_the_pixels():
  data = PNG[PNG.index(b"IDAT") - 4 : PNG.index(b"IEND") - 4]
  compressed = data[8:-4]
  half = len(compressed) // 2
  parts = [chunk(b"IDAT", compressed[:half]), chunk(b"IDAT", compressed[half:])]
  text = chunk(b"tEXt", b"key\0text")
  start, end = PNG[: PNG.index(b"IDAT") - 4], PNG[PNG.index(b"IEND") - 4 :]
  png = start + text * 100 + parts[0] + parts[1] + text * 100 + end
  np.testing.assert_array_equal(decode_image(png), PIXELS)


def test_palette_and_transparency_stay():
  palette = Image.fromarray(PIXELS).quantize(16)
  png = encode(palette, transparency=3)
  assert b"tRNS" in png
  expected = decode_image(png)
  png = insert(png, METADATA["compressed text of 2 MiB"])
  assert b"tRNS" in remove_metadata(png)
  np.testing.assert_array_equal(decode_image(png), expected)


def test_of_an_animation_the_first_image_stays():
  frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS ^ np.uint8(255))]
  png = encode(frames[0], save_all=True, append_images=frames[1:])
  assert b"fdAT" in png
  np.testing.assert_array_equal(decode_image(png), PIXELS)


@pytest.mark.parametrize("metadata", [b"", METADATA["compressed text of 2 MiB"]])
def test_damaged_pixels_stay_damaged(metadata):
  png = insert(PNG, metadata)
  start = png.index(b"IDAT")
  for damaged in (png[: start + 200], png[:start] + b"iDAT" + png[start + 4 :], png[:40]):
    with pytest.raises(BadImageError):
      decode_image(damaged)
  flipped = bytearray(png)
  flipped[start + 100] ^= 1
  with pytest.raises(BadImageError):
    decode_image(bytes(flipped))


def test_other_files_stay_as_they_are():
  for content in (b"", b"\x89PNG", b"\xff\xd8\xff", PNG):
    assert remove_metadata(content) is content
