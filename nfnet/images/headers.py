"""Reads the headers of image files, and refuses what would cost too much to decode.

A few hundred bytes can claim to be any number of pixels, and a few hundred kilobytes can tell a
decoder to go over all of them hundreds of times. So the size, the passes over it and the memory are
known, and bounded, before anything is allocated:

- a file has at most `ENCODED_BYTES_MAX` bytes and `PARTS_MAX` segments (JPEG) or chunks (PNG);
- a side has at most `SIDE_MAX` pixels, the most that JPEG can express;
- a PNG has at most `PNG_PIXELS_MAX` and a WebP at most `WEBP_PIXELS_MAX` pixels;
- the scans of a JPEG have at most `SCANNED_SAMPLES_MAX` samples together: a scan goes over every
  sample of its color channels, and a progressive file has about ten of them;
- the coefficients of a JPEG of several scans, which are all kept, take at most
  `COEFFICIENT_BYTES_MAX`.

Within these bounds, decoding takes at most `DECODING_BYTES_MAX` and a few seconds.

It also finds files that end too early although they have an end marker: JPEGs whose scans do not
bring every coefficient to its full precision, and files too short for their number of pixels.
"""

import dataclasses
import itertools

from nfnet.images.jpeg_segments import JPEG_START, SCAN_MARKER, jpeg_segments
from nfnet.images.png_chunks import PNG_START, png_chunks

ENCODED_BYTES_MAX = 128 * 2**20
PARTS_MAX = 2**16
SIDE_MAX = 65_535
PNG_PIXELS_MAX = 89_478_485
"""Pillow starts to warn at this number."""
WEBP_PIXELS_MAX = 2**25
SCANNED_SAMPLES_MAX = 2**30
COEFFICIENT_BYTES_MAX = 512 * 2**20
DECODING_BYTES_MAX = 768 * 2**20
"""The documentation promises this. Nothing is compared with it: the limits above keep every image
below, and tests measure the costliest ones."""

DECODED_PIXELS_MAX = 2**24
"""Larger images are decoded at 1/2, 1/4 or 1/8 of their sides."""
_REDUCTIONS = (1, 2, 4, 8)

# Measured with Pillow 13.0, with some room.
_PNG_BYTES_PER_PIXEL = 5
_WEBP_BYTES_PER_PIXEL = 20
_RGB_BYTES = 3

_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA), (0xC9, 0xCA)
_COEFFICIENTS = 64

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The most that deflate can expand: 258 bytes for two bits.
_DEFLATE_RATIO_MAX = 1032


class BadImageError(Exception):
  """Reports bytes that are not a complete image of a supported format; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """Tells what decoding a file will take.

  Attributes:
    width: width in pixels.
    height: height in pixels.
    reduction: 1, 2, 4 or 8: the divisor of the sides at which the image is decoded.
    decoding_bytes: memory that decoding takes, without the file itself.
  """

  width: int
  height: int
  reduction: int
  decoding_bytes: int


def read_header(encoded: bytes) -> Header:
  """Reads what a file says of itself.

  Args:
    encoded: content of the whole file.

  Raises:
    BadImageError: the file is none that can be decoded within the bounds, or not whole.
  """
  if not encoded:
    raise BadImageError("the file is empty")
  if len(encoded) > ENCODED_BYTES_MAX:
    raise BadImageError(
      f"the file has {len(encoded):,} bytes, more than the limit of {ENCODED_BYTES_MAX:,}: make "
      "the image smaller"
    )
  if encoded.startswith(JPEG_START):
    return _read_jpeg(encoded)
  if encoded.startswith(PNG_START):
    return _read_png(encoded)
  if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
    return _read_webp(encoded)
  raise BadImageError("not a JPEG, PNG or WebP image")


def _header(width: int, height: int, bytes_per_pixel: int, further_bytes: int = 0) -> Header:
  """Returns the header, with the bytes per pixel at which the image is decoded."""
  reduction = next(
    one for one in _REDUCTIONS if -(-width // one) * -(-height // one) <= DECODED_PIXELS_MAX
  )
  reduced_bytes = -(-width // reduction) * -(-height // reduction) * _RGB_BYTES
  return Header(
    width=width,
    height=height,
    reduction=reduction,
    decoding_bytes=width * height * bytes_per_pixel + reduced_bytes + further_bytes,
  )


def _check_sides(width: int, height: int) -> None:
  if not width or not height:
    raise BadImageError(f"the image has {width} x {height} pixels")
  if max(width, height) > SIDE_MAX:
    raise BadImageError(
      f"{width} x {height} pixels exceed the limit of {SIDE_MAX:,} pixels on a side: cut the image"
    )


def _check_pixels(width: int, height: int, image_format: str, pixels_max: int) -> None:
  _check_sides(width, height)
  if width * height > pixels_max:
    raise BadImageError(
      f"{width} x {height} pixels exceed the limit of {pixels_max:,} pixels of a {image_format}: "
      "make the image smaller, or save it as a JPEG that is not progressive"
    )


@dataclasses.dataclass
class _Component:
  """A color channel of a JPEG: its samples, and how precise each coefficient has become."""

  samples: int
  missing_bits: list[int | None]


def _read_jpeg(encoded: bytes) -> Header:
  width = height = frame = scans = scanned_samples = 0
  components: dict[int, _Component] = {}
  for number, segment in enumerate(jpeg_segments(encoded)):
    if number == PARTS_MAX:
      raise BadImageError(f"the JPEG has more than {PARTS_MAX:,} segments")
    if segment.marker in _FRAMES:
      if components:
        raise BadImageError("a JPEG with two frames")
      if segment.marker not in _SEQUENTIAL + _PROGRESSIVE:
        raise BadImageError("a lossless or hierarchical JPEG, which is not supported")
      frame = segment.marker
      width, height, components = _read_frame(encoded[segment.content])
      _check_sides(width, height)
    elif segment.marker == SCAN_MARKER:
      scans += 1
      scanned_samples += _read_scan(encoded[segment.content], components, frame in _PROGRESSIVE)
      if scanned_samples > SCANNED_SAMPLES_MAX:
        raise BadImageError(
          f"{width} x {height} pixels in {scans} or more scans exceed the limit of "
          f"{SCANNED_SAMPLES_MAX:,} samples in all scans: make the image smaller, or save it as a "
          "JPEG that is not progressive"
        )
  if any(missing != 0 for one in components.values() for missing in one.missing_bits):
    raise BadImageError("the JPEG is truncated: not all of its scans are there")
  samples = sum(one.samples for one in components.values())
  # A Huffman code has at least one bit, and each block begins with one.
  if frame not in _ARITHMETIC and samples // _COEFFICIENTS > 8 * len(encoded):
    raise BadImageError(
      f"the JPEG is truncated: {len(encoded):,} bytes cannot hold {width} x {height} pixels"
    )
  # Where one scan brings the whole picture, only a few rows are kept.
  coefficient_bytes = 2 * samples if scans > 1 else 0
  if coefficient_bytes > COEFFICIENT_BYTES_MAX:
    raise BadImageError(
      f"{width} x {height} pixels in {scans} scans exceed the limit of {COEFFICIENT_BYTES_MAX:,} "
      "bytes of coefficients: make the image smaller, or save it as a JPEG that is not progressive"
    )
  return _header(width, height, 0, coefficient_bytes)


def _read_frame(content: bytes) -> tuple[int, int, dict[int, _Component]]:
  """Returns width, height and the color channels that the frame's header declares."""
  channels = content[6:]
  if len(content) < 6 or len(channels) != 3 * content[5] or not channels:
    raise BadImageError("a JPEG with a damaged frame header")
  height, width = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
  sampling = {
    channels[start]: (channels[start + 1] >> 4, channels[start + 1] & 15)
    for start in range(0, len(channels), 3)
  }
  across_max = max(across for across, _ in sampling.values())
  down_max = max(down for _, down in sampling.values())
  if not all(across and down for across, down in sampling.values()):
    raise BadImageError("a JPEG with a damaged frame header")
  components = {}
  for name, (across, down) in sampling.items():
    blocks = -(-width * across // (8 * across_max)) * -(-height * down // (8 * down_max))
    components[name] = _Component(_COEFFICIENTS * blocks, [None] * _COEFFICIENTS)
  return width, height, components


def _read_scan(content: bytes, components: dict[int, _Component], is_progressive: bool) -> int:
  """Notes what a scan brings, and returns how many samples it goes over."""
  count = content[0] if content else 0
  names, rest = content[1 : 1 + 2 * count : 2], content[1 + 2 * count :]
  if not names or len(rest) != 3 or not components.keys() >= set(names):
    raise BadImageError("a JPEG with a damaged scan header")
  # In a sequential file these three bytes have no meaning, and some programs write others.
  first, last, precision = rest if is_progressive else (0, _COEFFICIENTS - 1, 0)
  for name in names:
    for coefficient in range(first, min(last + 1, _COEFFICIENTS)):
      components[name].missing_bits[coefficient] = precision & 15
  return sum(components[name].samples for name in names)


def _read_png(encoded: bytes) -> Header:
  if encoded[8:16] != b"\x00\x00\x00\x0dIHDR" or len(encoded) < 33:
    raise BadImageError("a PNG with a damaged header")
  width, height = int.from_bytes(encoded[16:20]), int.from_bytes(encoded[20:24])
  _check_pixels(width, height, "PNG", PNG_PIXELS_MAX)
  bits = encoded[24] * _PNG_CHANNELS.get(encoded[25], 1)
  if height * (width * bits // 8) > _DEFLATE_RATIO_MAX * len(encoded):
    raise BadImageError(
      f"the PNG is truncated: {len(encoded):,} bytes cannot hold {width} x {height} pixels"
    )
  if any(True for _ in itertools.islice(png_chunks(encoded), PARTS_MAX, None)):
    raise BadImageError(f"the PNG has more than {PARTS_MAX:,} chunks")
  return _header(width, height, _PNG_BYTES_PER_PIXEL)


def _read_webp(encoded: bytes) -> Header:
  kind = encoded[12:16]
  if kind == b"VP8 ":
    sides = [int.from_bytes(encoded[at : at + 2], "little") & 0x3FFF for at in (26, 28)]
  elif kind == b"VP8L":
    bits = int.from_bytes(encoded[21:25], "little")
    sides = [(bits >> shift & 0x3FFF) + 1 for shift in (0, 14)]
  elif kind == b"VP8X":
    sides = [int.from_bytes(encoded[at : at + 3], "little") + 1 for at in (24, 27)]
  else:
    raise BadImageError("not a JPEG, PNG or WebP image")
  width, height = sides
  _check_pixels(width, height, "WebP", WEBP_PIXELS_MAX)
  return _header(width, height, _WEBP_BYTES_PER_PIXEL)
