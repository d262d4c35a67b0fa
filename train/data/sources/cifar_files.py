"""CIFAR-10 and CIFAR-100 as a source, in their binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

A record of a file is one label byte (CIFAR-100: a coarse and a fine one) and 3,072 bytes of pixels,
channel by channel. The archive is read as it is distributed, or the folder that it holds. There is
also a version for Python, whose files are pickles and could run code; it is refused.
"""

import contextlib
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from nfnet.errors import UserError, there_are
from nfnet.foreign_files.regular_files import open_regular, read_regular_file
from train.data.preparation import class_folders
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.sources.images import Pixels
from train.data.sources.source import Source

_SIDE = 32
_ARCHIVE = re.compile(r"cifar-100?-(binary|python)\.tar(\.gz)?")
_TRAIN_FILES = ("train.bin", *(f"data_batch_{number}.bin" for number in range(1, 6)))
_VALIDATION_FILES = ("test.bin", "test_batch.bin")
# The files with the names of the classes, and the number of label bytes of a record. The last label
# is the one that is read: of CIFAR-100's, the fine one.
_LABEL_BYTES = {"batches.meta.txt": 1, "fine_label_names.txt": 2}
# CIFAR-100's training file has 154 MB.
_BYTES_MAX = 256 * 2**20
_NAMES_BYTES_MAX = 2**20


def is_cifar(path: str) -> bool:
  """Returns whether an archive has the name of CIFAR's, or a folder the files of one."""
  if os.path.isdir(path):
    return any(os.path.isfile(os.path.join(path, name)) for name in _LABEL_BYTES)
  return _ARCHIVE.fullmatch(os.path.basename(path)) is not None


def read_cifar(path: str) -> Source:
  """Reads the images of an archive or a folder; they are stored as PNG.

  Args:
    path: `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`, or the folder that it holds.

  Raises:
    UserError: a file is missing or damaged, or it is the version for Python.
    OSError: a file cannot be read.
  """
  if (archive := _ARCHIVE.fullmatch(os.path.basename(path))) and archive[1] == "python":
    raise UserError(
      f"--source={path} is the version for Python, whose pickles could run code: give the binary "
      f"version, {os.path.basename(path).replace('python', 'binary')}"
    )
  with _files(path) as (names, read):
    kinds = [name for name in _LABEL_BYTES if name in names]
    if len(kinds) != 1:
      raise UserError(
        f"{path} must have one of {' and '.join(_LABEL_BYTES)}, which name the classes, but has "
        f"{len(kinds)}"
      )
    class_names = tuple(
      line.strip()
      for line in read(kinds[0], _NAMES_BYTES_MAX).decode(errors="replace").splitlines()
      if line.strip()
    )
    class_folders.check_class_names(class_names, kinds[0])
    splits = {}
    for split, candidates in ((TRAIN, _TRAIN_FILES), (VALIDATION, _VALIDATION_FILES)):
      present = [name for name in candidates if name in names]
      if not present:
        raise UserError(f"{path} has none of {', '.join(candidates)}; is it complete?")
      splits[split] = tuple(
        image
        for name in present
        for image in _images(
          f"{path}, {name}",
          name.removesuffix(".bin"),
          read(name, _BYTES_MAX),
          _LABEL_BYTES[kinds[0]],
          len(class_names),
        )
      )
  return Source(class_names, splits, how="CIFAR's binary version: its test images are validation")


@contextlib.contextmanager
def _files(path: str) -> Iterator[tuple[frozenset[str], Callable[[str, int], bytes]]]:
  """Gives the names of the files of a folder or an archive, and a function that reads one."""
  if os.path.isdir(path):
    folder = pathlib.Path(path)
    yield (
      frozenset(entry.name for entry in os.scandir(path) if entry.is_file()),
      lambda name, bytes_max: read_regular_file(folder / name, bytes_max),
    )
    return
  try:
    with open_regular(path) as file, tarfile.open(fileobj=file) as archive:
      members = {os.path.basename(one.name): one for one in archive if one.isfile()}

      def read(name: str, bytes_max: int) -> bytes:
        if members[name].size > bytes_max:
          raise UserError(f"{path}, {name}: more than {bytes_max:,} bytes; it is not CIFAR's")
        return archive.extractfile(members[name]).read()

      yield frozenset(members), read
  except (tarfile.TarError, EOFError, zlib.error) as error:
    raise UserError(f"{path} is damaged: {error}; download it again") from error


def _images(
  place: str, prefix: str, content: bytes, label_bytes: int, num_classes: int
) -> Iterator[Pixels]:
  """Yields the images of one file."""
  record_bytes = label_bytes + 3 * _SIDE**2
  if not content or len(content) % record_bytes:
    raise UserError(
      f"{place} has {len(content):,} bytes, which is not a multiple of a record's "
      f"{record_bytes:,}; download it again"
    )
  records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
  labels = records[:, label_bytes - 1]
  if labels.max() >= num_classes:
    raise UserError(f"{place} has label {labels.max()}, but {there_are(num_classes, 'class')}")
  pixels = records[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
  for index, (label, image) in enumerate(zip(labels, pixels, strict=True)):
    yield Pixels(f"{prefix}/{index:05d}", (int(label),), image)
