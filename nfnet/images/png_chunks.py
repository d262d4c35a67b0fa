"""Finds the chunks of PNG files, and removes metadata before they are decoded.

Pillow reads texts, color profiles and EXIF before it decodes any pixel, and refuses the whole image
if they are damaged or larger than its limits (1 MiB for a text, 64 MiB for all). This project uses
none of them.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

PNG_START = b"\x89PNG\r\n\x1a\n"
# The chunks that decide about pixels: the critical ones, and transparency, which palettes need.
_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_LENGTH_AND_KIND = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4


class Chunk(NamedTuple):
  """A chunk of a PNG.

  Attributes:
    kind: four letters, as a rule.
    start: place of its length in the file.
    end: place after its checksum, beyond the end of a file that is cut off.
  """

  kind: bytes
  start: int
  end: int


def png_chunks(encoded: bytes) -> Iterator[Chunk]:
  """Yields the chunks of a PNG, up to the one that ends the image."""
  start = len(PNG_START)
  while start + _LENGTH_AND_KIND.size <= len(encoded):
    length, kind = _LENGTH_AND_KIND.unpack_from(encoded, start)
    end = start + _LENGTH_AND_KIND.size + length + _CHECKSUM_BYTES
    yield Chunk(kind, start, end)
    if kind == b"IEND":
      return
    start = end


def remove_metadata(encoded: bytes) -> bytes:
  """Returns a PNG file without the chunks that its pixels do not depend on.

  The other chunks stay as they are, damaged or not, for the decoder to judge. Of an animation, the
  still image remains that every decoder can show.

  Args:
    encoded: content of a file; if it is not a PNG, it is returned as it is.
  """
  if not encoded.startswith(PNG_START):
    return encoded
  kept = []
  kept_from = end = len(PNG_START)
  for kind, start, end in png_chunks(encoded):
    # The fifth bit of the first letter says that a decoder may ignore a chunk.
    if kind not in _PIXELS and kind.isalpha() and kind[0] & 0x20:
      kept.append(encoded[kept_from:start])
      kept_from = end
  if not kept:
    return encoded
  return b"".join((PNG_START, *kept, encoded[kept_from:end]))
