"""Image files made by hand, for what Pillow does not write: bombs, and files that are not whole."""

import struct
import zlib

PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(kind, content, checksum=None):
  """Returns a chunk of a PNG; with its right checksum unless another is given."""
  checksum = zlib.crc32(kind + content) if checksum is None else checksum
  return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width, height, bits, color_type, rows, *, is_interlaced=False, before=b"", compressed=None):
  """Writes a PNG.

  Args:
    width: width in pixels.
    height: height in pixels.
    bits: bits of a channel.
    color_type: color type of the format.
    rows: bytes of the rows with their filters.
    is_interlaced: whether the header says so.
    before: chunks before the pixels.
    compressed: content of the pixels' chunk instead of the compressed rows.
  """
  header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(is_interlaced))
  data = zlib.compress(rows) if compressed is None else compressed
  return PNG_START + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _segment(marker, content):
  return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _table(number, symbol):
  """Returns a Huffman table in which a bit 0 is the only code."""
  return _segment(0xC4, bytes((number, 1, *[0] * 15, symbol)))


def flat_jpeg(width, height, apart=None):
  """Writes a grey JPEG without any detail: one bit for each block, and little else.

  Args:
    width: width in pixels.
    height: height in pixels.
    apart: number of coefficients of a progressive file, up to 62, that each come in four scans of
      their own, which makes 2 + 4 * apart scans in all; None writes a sequential file.
  """
  blocks = -(-width // 8) * -(-height // 8)
  frame = struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)
  start = b"\xff\xd8" + _segment(0xDB, bytes((0, *[1] * 64)))
  if apart is None:
    tables = _table(0x00, 0) + _table(0x10, 0)
    head = _segment(0xC0, frame) + tables + _segment(0xDA, bytes((1, 1, 0, 0, 63, 0)))
    return start + head + bytes(-(-2 * blocks // 8)) + b"\xff\xd9"
  # Symbol E0 and 14 bits end the bands of 32,767 blocks at once.
  runs = "".join(["0" + "1" * 14] * -(-blocks // 32_767))
  runs += "0" * (-len(runs) % 8)
  band = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
  parts = [start, _segment(0xC2, frame), _table(0x00, 0), _table(0x10, 0xE0)]
  parts += [_segment(0xDA, bytes((1, 1, 0, 0, 0, 0))), bytes(-(-blocks // 8))]
  scans = [(k, k, bits) for k in range(1, 1 + apart) for bits in (0x03, 0x32, 0x21, 0x10)]
  for first, last, bits in (*scans, (1 + apart, 63, 0x00)):
    parts += [_segment(0xDA, bytes((1, 1, 0, first, last, bits))), band]
  return b"".join([*parts, b"\xff\xd9"])


def with_jpeg_size(encoded, width, height):
  """Returns a JPEG whose header claims another size."""
  changed = bytearray(encoded)
  frame = max(changed.find(b"\xff\xc0"), changed.find(b"\xff\xc2"))
  changed[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
  return bytes(changed)


def webp_header(width, height, kind=b"VP8X"):
  """Returns the beginning of a WebP that claims a size, and nothing else."""
  if kind == b"VP8X":
    content = bytes(4) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
  elif kind == b"VP8L":
    content = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)
  else:
    content = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
  body = b"WEBP" + kind + struct.pack("<I", len(content)) + content + bytes(20)
  return b"RIFF" + struct.pack("<I", len(body)) + body
