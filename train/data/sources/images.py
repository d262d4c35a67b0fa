"""Images as sources have them: in files, in parts of files, or as pixels."""

import dataclasses
import errno
import io
import os
import zlib

import numpy as np
from PIL import Image

from nfnet.foreign_files.regular_files import open_regular
from nfnet.images.decoding import read_image_file
from nfnet.images.headers import ENCODED_BYTES_MAX, BadImageError
from train.data.sources.source import SourceImage, UnreadableImageError


def read_file(path: str | os.PathLike[str]) -> bytes:
  """Returns the bytes of a file with an image.

  Raises:
    UnreadableImageError: it is not a regular file, or nobody may read it.
    BadImageError: it is too large.
    OSError: it cannot be read now. These are errors of the disk or the network, which may work
      again when the same command continues.
  """
  try:
    return read_image_file(path)
  except OSError as error:
    # Something else may have come in its place since it was listed.
    if error.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM):
      raise UnreadableImageError(error.strerror) from error
    raise


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile(SourceImage):
  """An image in a file, stored unchanged.

  Attributes:
    name: path below the source folder, with forward slashes.
    labels: class indices.
    root: the source folder.
    size_bytes: length of the file.
    modified_ns: time of its last change in nanoseconds.
    problem: why it cannot be read; empty for a regular file.
  """

  name: str
  labels: tuple[int, ...]
  root: str
  size_bytes: int
  modified_ns: int
  problem: str = ""

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    facts = f"{self.name} {self.labels} {self.size_bytes} {self.modified_ns}{self.problem}"
    return os.fsencode(facts)

  def read(self) -> bytes:
    """Returns the file's bytes.

    Raises:
      UnreadableImageError: it is not a regular file, or nobody may read it.
      BadImageError: it is too large.
      OSError: it cannot be read.
    """
    if self.problem:
      raise UnreadableImageError(self.problem)
    return read_file(os.path.join(self.root, self.name))


@dataclasses.dataclass(frozen=True, slots=True)
class Container:
  """A file that holds many images; they share this object.

  Attributes:
    path: path of the file.
    size_bytes: length of the file.
    modified_ns: time of its last change in nanoseconds.
  """

  path: str
  size_bytes: int
  modified_ns: int

  @classmethod
  def of(cls, path: str) -> "Container":
    """Returns the description of a file that exists.

    Raises:
      OSError: the system does not tell.
    """
    status = os.stat(path)
    return cls(path, status.st_size, status.st_mtime_ns)

  def fingerprint(self) -> str:
    """Returns text that differs whenever the file has changed."""
    return f"{self.size_bytes} {self.modified_ns}"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInFile(SourceImage):
  """An image that is a part of a file, stored unchanged.

  Attributes:
    name: name that no other image of the split has.
    labels: class indices.
    container: the file.
    offset: place of the image's first byte in the file.
    size_bytes: number of bytes of the image.
    problem: why it cannot be read; empty if it can.
  """

  name: str
  labels: tuple[int, ...]
  container: Container
  offset: int
  size_bytes: int
  problem: str = ""

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    place = f"{self.container.fingerprint()} {self.offset} {self.size_bytes}{self.problem}"
    return os.fsencode(f"{self.name} {self.labels} {place}")

  def read(self) -> bytes:
    """Returns the part's bytes.

    Raises:
      UnreadableImageError: it is not an image or not whole.
      BadImageError: it is too large.
      OSError: the file cannot be read.
    """
    if self.problem:
      raise UnreadableImageError(self.problem)
    if self.size_bytes > ENCODED_BYTES_MAX:
      raise BadImageError(f"has more than {ENCODED_BYTES_MAX:,} bytes: make the image smaller")
    with open_regular(self.container.path) as file:
      file.seek(self.offset)
      content = file.read(self.size_bytes)
    if len(content) < self.size_bytes:
      raise UnreadableImageError(f"{self.container.path} ends before it")
    return content


@dataclasses.dataclass(frozen=True)
class Pixels(SourceImage):
  """An image that is given as pixels and stored as PNG.

  It is PNG and not WebP, because for 28x28 photographs of clothes, lossless WebP takes 10 % fewer
  bytes and 1.8 times as long to decode (453 against 506 bytes, 146 against 81 us).

  Attributes:
    name: name that no other image of the source has.
    labels: class indices.
    pixels: uint8 [height, width] or [height, width, 3].
    compression_level: PNG's compression level, 0 to 9.
  """

  name: str
  labels: tuple[int, ...]
  pixels: np.ndarray
  compression_level: int = 9

  @property
  def size_bytes(self) -> int:
    """Number of bytes before compression."""
    return self.pixels.nbytes

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    pixels_crc = zlib.crc32(self.pixels.tobytes())
    return f"{self.name} {self.labels} {self.compression_level} {pixels_crc}".encode()

  def read(self) -> bytes:
    """Returns the bytes of a PNG file."""
    return encode_png(self.pixels, self.compression_level)


def encode_png(pixels: np.ndarray, compression_level: int = 9) -> bytes:
  """Returns the bytes of a PNG file of pixels, uint8 [height, width] or [height, width, 3]."""
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, "PNG", compress_level=compression_level)
  return encoded.getvalue()
