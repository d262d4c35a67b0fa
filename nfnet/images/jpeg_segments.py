"""Finds the segments of JPEG files, and completes the data of their scans."""

import re
from collections.abc import Iterator
from typing import NamedTuple

JPEG_START = b"\xff\xd8\xff"
SCAN_MARKER = 0xDA

# A marker ends data; FF 00 stands for a byte FF in it, and restart markers (D0 to D7) divide it.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END = 0xD9
_WITHOUT_CONTENT = (0x01, 0xD8)
# Any bytes but FF that codes of zeros do not look like.
_PADDING = bytes((150 + 73 * index) % 255 for index in range(255))


class Segment(NamedTuple):
  """A segment of a JPEG.

  Attributes:
    marker: second byte of its marker.
    start: place of the marker in the file.
    content: place of its content without marker and length; data of a scan follows the content.
  """

  marker: int
  start: int
  content: slice


def jpeg_segments(encoded: bytes) -> Iterator[Segment]:
  """Yields the segments of a JPEG after the first marker, up to the one that ends the image."""
  position = len(JPEG_START) - 1
  while found := _MARKER.search(encoded, position):
    marker, position = encoded[found.end() - 1], found.end()
    following = position
    if marker not in (_END, *_WITHOUT_CONTENT):
      following += int.from_bytes(encoded[position : position + 2])
    yield Segment(marker, found.start(), slice(position + 2, following))
    if marker == _END:
      return
    position = following


def jpeg_with_padded_scans(encoded: bytes) -> bytes:
  """Returns a JPEG with further bytes before each marker that follows data of a scan."""
  parts, start = [], 0
  in_scan = False
  for segment in jpeg_segments(encoded):
    if in_scan:
      # Any number of bytes FF may precede a marker.
      data = encoded[start : segment.start].rstrip(b"\xff")
      parts += [data, _PADDING]
      start += len(data)
    in_scan = segment.marker == SCAN_MARKER
  return b"".join([*parts, encoded[start:]])
