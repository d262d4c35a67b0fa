"""Lists the members of tar files in one pass over their headers; nothing is unpacked.

A file that is cut off or damaged gives its members up to there, and then one that says so. Members
that nobody could tell apart, and those that are not regular files, have a problem, too. Names never
become paths.
"""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from nfnet.errors import UserError, short_text

# A header with all of its extensions; names and attributes of a member are not longer.
_HEADER_BYTES_MAX = 2**20
_COMPRESSED = (
  (b"\x1f\x8b", "gzip -d"),
  (b"BZh", "bzip2 -d"),
  (b"\xfd7zXZ", "xz -d"),
  (b"\x28\xb5\x2f\xfd", "zstd -d"),
)


CUT_OFF = "the archive is cut off within it"


class Member(NamedTuple):
  """A member of a tar file that is not a folder.

  Attributes:
    name: name in the archive; empty for the place where the archive is damaged.
    offset: place of its first byte in the file.
    size_bytes: length of the member.
    problem: why it cannot be read; empty if it can.
    is_repeated: whether a member before it has the same name.
  """

  name: str
  offset: int
  size_bytes: int
  problem: str = ""
  is_repeated: bool = False

  @property
  def unique_name(self) -> str:
    """Name that no other member has."""
    return f"{self.name} at byte {self.offset}" if self.is_repeated else self.name


class _DamagedError(ValueError):
  """Reports that a header asks for more than any header does."""


class _Headers:
  """The file as `tarfile` sees it: it cannot read much at once, which a damaged header may ask."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.seek = file.seek
    self.tell = file.tell

  def read(self, size_bytes: int) -> bytes:
    if not 0 <= size_bytes <= _HEADER_BYTES_MAX:
      raise _DamagedError(f"a header asks for {size_bytes:,} bytes")
    return self._file.read(size_bytes)


def read_members(file: BinaryIO, start: int = 0, size_bytes: int | None = None) -> Iterator[Member]:
  """Yields the members of a tar file, or of one that is a member of another.

  The file may be used between two members.

  Args:
    file: the file, open for reading.
    start: place where the archive begins.
    size_bytes: length of the archive; None is the rest of the file.

  Raises:
    UserError: there is no archive.
    OSError: the file cannot be read.
  """
  file_bytes = file.seek(0, 2)
  end = file_bytes if size_bytes is None else min(file_bytes, start + size_bytes)
  seen: set[str] = set()
  reached = start
  try:
    file.seek(start)
    archive: Any = tarfile.TarFile(fileobj=_Headers(file), mode="r")
    while (member := archive.next()) is not None:
      # Otherwise it would keep every member.
      archive.members.clear()
      if archive.offset <= reached or member.offset_data > end:
        raise _DamagedError("a header leads backwards or beyond the end")
      reached = archive.offset
      if not member.isdir():
        yield _member(member, end, seen)
    reached = archive.offset
    file.seek(reached)
    block = file.read(min(tarfile.BLOCKSIZE, max(0, end - reached)))
    if len(block) < tarfile.BLOCKSIZE:
      raise _DamagedError("it ends without an end mark")
    if any(block):
      raise _DamagedError("a header is damaged")
  except (OSError, MemoryError):
    raise
  # Of damaged headers, tarfile raises its own errors, ValueError, OverflowError and others.
  except Exception as error:
    if reached == start and start == 0:
      file.seek(start)
      raise _no_archive(file.read(8), error) from error
    yield Member("", reached, 0, f"damaged after {reached:,} bytes ({short_text(error)})")


def _member(member: tarfile.TarInfo, end: int, seen: set[str]) -> Member:
  name = member.name.removeprefix("./")
  is_repeated = name in seen
  seen.add(name)
  problem = ""
  if not member.isreg() or member.issparse():
    problem = "it is not a regular file in the archive"
  elif is_repeated:
    problem = "the archive has another member of this name before it"
  elif member.offset_data + member.size > end:
    problem = CUT_OFF
  return Member(name, member.offset_data, max(0, member.size), problem, is_repeated)


def _no_archive(start: bytes, error: Exception) -> UserError:
  for magic, program in _COMPRESSED:
    if start.startswith(magic):
      return UserError(f"it is compressed, so nothing in it can be found: run {program} on it")
  return UserError(f"it is not a tar file ({short_text(error)})")
