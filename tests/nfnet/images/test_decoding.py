import concurrent.futures
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nfnet.images import decoding
from nfnet.images.decoding import BadImageError, decode_image, read_image_file
from nfnet.images.headers import ENCODED_BYTES_MAX
from tests.nfnet.images.crafted_files import flat_jpeg, png

COLOR = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(COLOR).resize((96, 80), Image.Resampling.BICUBIC))


def encode(pixels, image_format, mode=None, **options):
  image = Image.fromarray(pixels)
  encoded = io.BytesIO()
  (image.convert(mode) if mode else image).save(encoded, image_format, **options)
  return encoded.getvalue()


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


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("stray", [b"", b"\0\0\0"], ids=["", "stray bytes"])
def test_a_jpeg_cut_short_anywhere_is_refused_although_it_has_an_end(mode, progressive, stray):
  whole = encode(COLOR, "JPEG", mode, progressive=progressive)
  quantization = whole.index(b"\xff\xdb")
  whole = whole[:quantization] + stray + whole[quantization:]
  decode_image(whole)
  # The last bits of the last code may be those that libjpeg adds.
  for length_bytes in range(len(whole) - 4):
    with pytest.raises(BadImageError):
      decode_image(whole[:length_bytes] + b"\xff\xd9")


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
  whole = encode(COLOR, "JPEG", progressive=True)
  scans = [at for at in range(len(whole)) if whole.startswith(b"\xff\xda", at)]
  assert len(scans) == 10
  for at in scans:
    # The tables of a scan stand before it.
    for cut in (at, whole.rindex(b"\xff\xc4", 0, at)):
      with pytest.raises(BadImageError, match="truncated: not all of its scans are there"):
        decode_image(whole[:cut] + b"\xff\xd9")


def test_a_png_whose_pixels_end_early_is_refused_although_it_has_an_end():
  rows = b"".join(b"\0" + row.tobytes() for row in COLOR)
  compressed = zlib.compress(rows)
  for length_bytes in range(0, len(compressed) - 8, 7):
    with pytest.raises(BadImageError):
      decode_image(png(24, 20, 8, 2, b"", compressed=compressed[:length_bytes]))


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_whose_pixels_end_early_is_refused_although_its_lengths_agree(lossless):
  data = encode(COLOR, "WEBP", lossless=lossless)[20:]
  kind = b"VP8L" if lossless else b"VP8 "

  def webp(content):
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body

  decode_image(webp(data))
  for length_bytes in range(10, len(data) - 4, 5):
    with pytest.raises(BadImageError):
      decode_image(webp(data[:length_bytes]))


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


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_decoded(image_format):
  frames = [Image.fromarray(np.roll(COLOR, shift, 0)) for shift in range(20)]
  encoded = encode(COLOR, image_format, save_all=True, append_images=frames, lossless=True)
  np.testing.assert_array_equal(decode_image(encoded), COLOR)


def test_interlaced_png():
  passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
  rows = b"".join(
    b"\0" + row.tobytes()
    for left, top, right, down in (*passes, (0, 1, 1, 2))
    for row in COLOR[top::down, left::right]
  )
  encoded = png(24, 20, 8, 2, rows, is_interlaced=True)
  np.testing.assert_array_equal(decode_image(encoded), COLOR)


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_megabytes_of_metadata_do_no_harm(image_format):
  encoded = encode(SMOOTH, image_format, icc_profile=bytes(5_000_000))
  np.testing.assert_array_equal(decode_image(encoded), decode_image(encode(SMOOTH, image_format)))


def test_a_large_jpeg_is_decoded_at_half_of_its_sides():
  height, width = 3_001, 6_001
  left_white = np.zeros((height, width), np.uint8)
  left_white[:, : width // 2] = 255
  for progressive in (False, True):
    decoded = decode_image(encode(left_white, "JPEG", progressive=progressive))
    assert decoded.shape == (1_501, 3_001, 3)
    assert decoded[:, :1_490].min() > 250
    assert decoded[:, 1_510:].max() < 5


@pytest.mark.parametrize(("side", "reduced"), [(8_192, 4_096), (8_193, 2_049), (9_459, 2_365)])
def test_a_larger_jpeg_is_decoded_at_a_smaller_scale(side, reduced):
  decoded = decode_image(flat_jpeg(side, side))
  assert decoded.shape == (reduced, reduced, 3)
  assert (decoded == 128).all()


def test_a_large_jpeg_with_stray_bytes_is_decoded_at_half_of_its_sides():
  whole = flat_jpeg(6_001, 3_001)
  decoded = decode_image(whole.replace(b"\xff\xc0", b"\0\0\0\xff\xc0"))
  assert decoded.shape == (1_501, 3_001, 3)
  assert (decoded == 128).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16"])
def test_a_large_png_is_averaged_to_half_of_its_sides(mode):
  height, width = 3_001, 6_001
  grey = (np.arange(height)[:, None] // 2 % 250 + np.arange(width) % 2).astype(np.uint8)
  image = Image.fromarray(grey.astype(np.uint16) * 256 if mode == "I;16" else grey)
  encoded = io.BytesIO()
  (image if mode == "I;16" else image.convert(mode)).save(encoded, "PNG", compress_level=1)
  expected = np.asarray(Image.fromarray(grey).convert("RGB").reduce(2))
  np.testing.assert_array_equal(decode_image(encoded.getvalue()), expected)


def test_of_large_images_one_is_decoded_at_a_time():
  small, large = encode(COLOR, "PNG"), encode(np.zeros((4_000, 4_000), np.uint8), "PNG")
  with concurrent.futures.ThreadPoolExecutor(2) as threads:
    with decoding._large_image:
      decoding_large = threads.submit(decode_image, large)
      assert threads.submit(decode_image, small).result().shape == COLOR.shape
      with pytest.raises(TimeoutError):
        decoding_large.result(0.2)
    assert decoding_large.result().shape == (4_000, 4_000, 3)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
  path = tmp_path / "image.png"
  path.write_bytes(encode(COLOR, "PNG"))
  assert decode_image(read_image_file(path)).shape == COLOR.shape
  with path.open("r+b") as file:
    file.truncate(ENCODED_BYTES_MAX + 1)
  with pytest.raises(BadImageError, match="has more than 134,217,728 bytes"):
    read_image_file(path)
  with pytest.raises(BadImageError, match="more than the limit of 134,217,728"):
    decode_image(bytes(ENCODED_BYTES_MAX + 1))


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
