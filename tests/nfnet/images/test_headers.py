"""What would cost too much to decode is refused before anything is allocated."""

import io
import math
import struct
import time

import numpy as np
import pytest
from PIL import Image

from nfnet.images.decoding import decode_image
from nfnet.images.headers import (
  COEFFICIENT_BYTES_MAX,
  DECODING_BYTES_MAX,
  PARTS_MAX,
  PNG_PIXELS_MAX,
  WEBP_PIXELS_MAX,
  BadImageError,
  read_header,
)
from tests import fuzzing
from tests.nfnet.images.crafted_files import (
  chunk,
  flat_jpeg,
  png,
  webp_header,
  with_jpeg_size,
)
from tests.repository import ROOT


def jpeg(**options):
  encoded = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
  Image.fromarray(noise).save(encoded, "JPEG", **options)
  return encoded.getvalue()


def two_scans(width, height):
  """Returns the headers of a JPEG of two color channels, each in a sequential scan of its own."""
  frame = struct.pack(">BHHB6B", 8, height, width, 2, 1, 0x11, 0, 2, 0x11, 0)
  scans = b"".join(b"\xff\xda\0\x08" + bytes((1, name, 0, 0, 63, 0)) for name in (1, 2))
  return b"\xff\xd8\xff\xc0\0\x0e" + frame + scans + bytes(10**6)


BOMBS = {
  "progressive, 202 scans": (flat_jpeg(9459, 9459, apart=50), "in 12 or more scans exceed"),
  "progressive, 10 scans": (
    with_jpeg_size(jpeg(progressive=True), 12_000, 12_000) + bytes(10**6),
    "exceed the limit of 1,073,741,824 samples",
  ),
  "a few bytes that claim a JPEG": (
    with_jpeg_size(jpeg(), 9459, 9459),
    "truncated: .* bytes cannot hold 9459 x 9459",
  ),
  "coefficients": (
    two_scans(16_000, 16_000),
    "exceed the limit of 536,870,912 bytes of coefficients",
  ),
  "segments": (
    b"\xff\xd8" + b"\xff\xfe\0\x02" * (PARTS_MAX + 1) + jpeg()[2:],
    "more than 65,536 segments",
  ),
  "1 x 89,000,000 PNG": (png(1, 89_000_000, 8, 0, bytes(100)), "65,535 pixels on a side"),
  "89,000,000 x 1 PNG": (png(89_000_000, 1, 8, 0, bytes(100)), "65,535 pixels on a side"),
  "PNG": (png(9_500, 9_500, 8, 0, bytes(100)), "9500 x 9500 pixels exceed the limit of 89,478,485"),
  "interlaced, 16 bits": (
    png(60_000, 60_000, 16, 6, bytes(100), is_interlaced=True),
    "pixels exceed the limit of 89,478,485 pixels of a PNG",
  ),
  "a few bytes that claim a PNG": (
    png(9_000, 9_000, 16, 6, bytes(100)),
    "truncated: .* bytes cannot hold 9000 x 9000",
  ),
  "chunks": (
    png(1, 1, 8, 0, bytes(2), before=chunk(b"tEXt", b"") * (PARTS_MAX + 1)),
    "more than 65,536 chunks",
  ),
  "canvas of an animation": (webp_header(2**24, 255), "65,535 pixels on a side"),
  "lossless WebP": (webp_header(16_383, 16_383, b"VP8L"), "limit of 33,554,432 pixels of a WebP"),
  "lossy WebP": (webp_header(16_383, 16_383, b"VP8 "), "limit of 33,554,432 pixels of a WebP"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name):
  encoded, message = BOMBS[name]
  began_seconds = time.process_time()
  with pytest.raises(BadImageError, match=message):
    decode_image(encoded)
  assert time.process_time() - began_seconds < 0.5


@pytest.mark.parametrize(
  ("width", "height", "reduction"),
  # Cameras of 24, 61, 100, 150 and 200 megapixels.
  [(6000, 4000, 2), (9504, 6336, 2), (11648, 8736, 4), (14204, 10652, 4), (16320, 12240, 4)],
)
def test_photographs_of_the_largest_cameras_are_not_refused(width, height, reduction):
  # Flat files have a bit for each block; real ones a hundred times as many.
  header = read_header(with_jpeg_size(jpeg(), width, height) + bytes(2_000_000))
  assert (header.width, header.height, header.reduction) == (width, height, reduction)
  assert header.decoding_bytes <= 3 * 2**24


def test_the_limits_add_up_to_less_than_the_memory_that_the_documentation_promises():
  side = math.isqrt(COEFFICIENT_BYTES_MAX // 2) // 8 * 8
  largest = {
    "jpeg": with_jpeg_size(flat_jpeg(8, 8, apart=0), side, side) + bytes(10**6),
    "png": png(9_459, PNG_PIXELS_MAX // 9_459, 8, 0, bytes(10**6), compressed=bytes(10**6)),
    "webp": webp_header(2**13, WEBP_PIXELS_MAX // 2**13, b"VP8L"),
  }
  for encoded in largest.values():
    assert DECODING_BYTES_MAX // 2 < read_header(encoded).decoding_bytes <= DECODING_BYTES_MAX
  promise = f"most {DECODING_BYTES_MAX // 2**20} MiB for one large image"
  assert promise in (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC7, 0xCB, 0xCD])
def test_lossless_and_hierarchical_jpegs_are_refused(marker):
  changed = jpeg().replace(b"\xff\xc0", bytes((0xFF, marker)))
  with pytest.raises(BadImageError, match="lossless or hierarchical"):
    decode_image(changed)


def test_metadata_that_look_like_markers_are_skipped():
  whole = jpeg()
  thumbnail = with_jpeg_size(flat_jpeg(100, 100, apart=60), 60_000, 60_000)
  comment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
  changed = whole[:2] + comment + whole[2:] + thumbnail
  np.testing.assert_array_equal(decode_image(changed), decode_image(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind",
  [
    "sequential",
    "progressive",
    "many scans",
    "stray bytes",
    "png",
    "deep png",
    "webp",
    "lossless webp",
  ],
)
def test_the_costliest_images_that_are_accepted_stay_within_the_bounds(kind):
  side = 9_459
  if kind == "sequential":
    encoded = flat_jpeg(32_700, 32_700)
  elif kind == "progressive":
    encoded = flat_jpeg(16_000, 16_000, apart=0)
  elif kind == "many scans":
    encoded = flat_jpeg(2_050, 2_050, apart=62)
  elif kind == "stray bytes":
    encoded = flat_jpeg(9_400, 9_400, apart=2)
    encoded = encoded.replace(b"\xff\xc2", bytes(3) + b"\xff\xc2")
  elif kind == "png":
    encoded = png(side, side, 8, 2, bytes((3 * side + 1) * side))
  elif kind == "deep png":
    encoded = png(side, side, 16, 6, bytes((8 * side + 1) * side))
  else:
    noise = np.random.default_rng(0).integers(0, 256, (724, 724, 3), np.uint8)
    image = Image.fromarray(noise).resize((5_792, 5_792), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    image.save(written, "WEBP", lossless=kind == "lossless webp", quality=20, method=0)
    encoded = written.getvalue()
  shapes = []
  findings = fuzzing.run_bounded(
    lambda content: shapes.append(decode_image(content)),
    [encoded],
    memory_bytes_max=DECODING_BYTES_MAX,
  )
  assert not findings, fuzzing.describe(findings)
