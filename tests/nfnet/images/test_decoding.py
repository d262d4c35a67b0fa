import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nfnet.images.decoding import BadImageError, decode_image

COLOR = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(COLOR).resize((96, 80), Image.Resampling.BICUBIC))


def encode(pixels, image_format, mode=None, **options):
  image = Image.fromarray(pixels)
  encoded = io.BytesIO()
  (image.convert(mode) if mode else image).save(encoded, image_format, **options)
  return encoded.getvalue()


def png(width, height, bits, color_type, rows):
  """Writes a PNG by hand, for what Pillow does not write."""

  def chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

  header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


LOSSLESS = [("PNG", {}), ("PNG", {"compress_level": 0}), ("WEBP", {"lossless": True})]
LOSSY = [("JPEG", {"quality": 98, "subsampling": 0, "progressive": p}) for p in (False, True)]


@pytest.mark.parametrize(("image_format", "options"), LOSSLESS)
def test_lossless_formats_give_the_pixels_back(image_format, options):
  decoded = decode_image(encode(COLOR, image_format, **options))
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, COLOR)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("image_format", "options"), LOSSY)
def test_jpeg_of_every_color_space_is_close_to_the_pixels(image_format, options, mode):
  decoded = decode_image(encode(SMOOTH, image_format, mode, **options))
  expected = np.asarray(Image.fromarray(SMOOTH).convert(mode).convert("RGB"), np.int32)
  # Quality 98 rounds DCT coefficients to multiples of 1..5; CMYK is stored inverted, so an
  # inversion that was missed would be off by more than 50 on average.
  assert np.abs(decoded.astype(np.int32) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_every_mode_becomes_rgb_and_loses_transparency(mode):
  decoded = decode_image(encode(COLOR, "PNG", mode))
  np.testing.assert_array_equal(
    decoded, np.asarray(Image.fromarray(COLOR).convert(mode).convert("RGB"))
  )


def test_palette_with_transparency_decodes_without_a_warning():
  encoded = encode(COLOR, "PNG", "P", transparency=bytes([0, 100, 255]))
  assert decode_image(encoded).shape == COLOR.shape


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_channels_are_scaled_and_not_clipped(color_type, channels):
  wide = np.random.default_rng(1).integers(0, 2**16, (6, 5, channels)).astype(">u2")
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  decoded = decode_image(png(5, 6, 16, color_type, rows))
  color = wide[:, :, :3] if channels > 2 else np.repeat(wide[:, :, :1], 3, axis=2)
  np.testing.assert_array_equal(decoded, color // 256)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_one_pixel_is_an_image(image_format):
  encoded = encode(np.full((1, 1, 3), 200, np.uint8), image_format)
  decoded = decode_image(encoded)
  assert decoded.shape == (1, 1, 3)
  assert abs(int(decoded[0, 0, 0]) - 200) <= 2


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_orientation_tags_are_ignored(image_format):
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = encode(SMOOTH, image_format, exif=exif.tobytes())
  np.testing.assert_array_equal(decode_image(turned), decode_image(encode(SMOOTH, image_format)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_anywhere_is_refused(mode, progressive):
  whole = encode(COLOR, "JPEG", mode, progressive=progressive)
  for length_bytes in range(len(whole)):
    with pytest.raises(BadImageError):
      decode_image(whole[:length_bytes])


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_a_file_cut_in_half_is_refused(image_format):
  whole = encode(COLOR, image_format)
  with pytest.raises(BadImageError):
    decode_image(whole[: len(whole) // 2])


@pytest.mark.parametrize(
  ("encoded", "reason"),
  [
    (b"", "empty"),
    (b"garbage", "not a JPEG, PNG or WebP"),
    (encode(COLOR, "GIF", "P"), "not a JPEG, PNG or WebP"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG, PNG or WebP"),
    (png(9_500, 9_500, 8, 0, b"\0" * 100), "pixels"),
    (png(100_000, 100_000, 8, 0, b"\0" * 100), "pixels"),
  ],
)
def test_what_is_no_image_is_refused_with_the_reason(encoded, reason):
  with pytest.raises(BadImageError, match=reason):
    decode_image(encoded)


# Pillow's own limit is off, as it is for a user who does not turn warnings into errors.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(image_format):
  if image_format == "PNG":
    encoded = png(9_500, 9_500, 8, 0, b"\0" * 100)
  else:
    encoded = bytearray(encode(COLOR, "JPEG"))
    start_of_frame = encoded.index(b"\xff\xc0")
    encoded[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", 9_500, 9_500)
  with pytest.raises(BadImageError, match="9500 x 9500 pixels exceed"):
    decode_image(bytes(encoded))


def test_stray_bytes_between_jpeg_segments_are_tolerated():
  whole = encode(COLOR, "JPEG")
  quantization = whole.index(b"\xff\xdb")
  stray = whole[:quantization] + b"\0\0\0" + whole[quantization:]
  np.testing.assert_array_equal(decode_image(stray), decode_image(whole))


@settings(max_examples=150, deadline=None)
@given(
  image_format=st.sampled_from(["JPEG", "PNG", "WEBP"]),
  changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
)
def test_damaged_files_give_an_image_or_the_one_error(image_format, changes):
  damaged = bytearray(encode(COLOR, image_format))
  for position, value in changes:
    damaged[position % len(damaged)] = value
  try:
    decoded = decode_image(bytes(damaged))
  except BadImageError:
    return
  assert decoded.dtype == np.uint8
  assert decoded.ndim == 3
  assert decoded.shape[2] == 3
