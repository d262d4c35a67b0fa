"""The four idx files of MNIST and its relatives as a source, compressed or not."""

import gzip
import math
import pathlib
import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from nfnet.errors import UserError, format_count
from nfnet.foreign_files.regular_files import open_regular
from train.data.preparation import class_folders
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.sources.images import Pixels
from train.data.sources.source import Source

_UNSIGNED_BYTES = 0x08
# EMNIST, the largest relative of MNIST, has 547 MB.
_BYTES_MAX = 640 * 2**20
_SIDE_MAX = 4096


def read_idx_source(
  root: pathlib.Path, class_names: Sequence[str] = (), compression_level: int = 9
) -> Source:
  """Reads the four idx files of MNIST: `train-*` becomes "train", `t10k-*` "validation".

  Args:
    root: folder with the files, compressed or not.
    class_names: names of the classes; by default, the labels as digits.
    compression_level: compression level of the PNG that stores an image, 0 to 9.

  Raises:
    UserError: a file is missing or damaged, or the files do not belong together.
  """
  splits = {}
  label_max = 0
  for split, prefix in ((TRAIN, "train"), (VALIDATION, "t10k")):
    images = _read_idx(root, f"{prefix}-images?idx3-ubyte*", dimensions=3)
    labels = _read_idx(root, f"{prefix}-labels?idx1-ubyte*", dimensions=1)
    if not len(images) or len(images) != len(labels):
      raise UserError(
        f"{root}: {format_count(len(images), f'{prefix} image')} but "
        f"{format_count(len(labels), 'label')}"
      )
    label_max = max(label_max, int(labels.max()))
    splits[split] = tuple(
      Pixels(f"{prefix}/{index:07d}", (int(label),), image, compression_level)
      for index, (image, label) in enumerate(zip(images, labels, strict=True))
    )
  names = tuple(class_names) or tuple(str(label) for label in range(label_max + 1))
  class_folders.check_class_names(names, "--class_names")
  if label_max >= len(names):
    raise UserError(
      f"{root} has label {label_max}, but class_names has only {format_count(len(names), 'name')}"
    )
  return Source(names, splits, how="idx files: train-* is train, t10k-* is validation")


def _read_idx(root: pathlib.Path, pattern: str, dimensions: int) -> np.ndarray:
  paths = sorted(root.glob(pattern))
  if not paths:
    raise UserError(f"{root} has no file {pattern.replace('?', '-').replace('*', '[.gz]')}")
  path = paths[0]
  header_bytes = 4 + 4 * dimensions
  try:
    with open_regular(path) as stored, _decompressed(path, stored) as file:
      header = file.read(header_bytes)
      if header[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)) or len(header) < header_bytes:
        raise UserError(f"{path} is not an idx file of unsigned bytes with {dimensions} dimensions")
      shape = struct.unpack(f">{dimensions}I", header[4:])
      size = math.prod(shape)
      if not 0 < size <= _BYTES_MAX or (len(shape) > 1 and max(shape[1:]) > _SIDE_MAX):
        raise UserError(
          f"{path} has values of shape {shape}: there must be at least one, at most "
          f"{_BYTES_MAX:,} in all, and at most {_SIDE_MAX:,} on the side of an image"
        )
      # Whatever else a compressed file has is not decompressed.
      content = file.read(size + 1)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
  if len(content) != size:
    found = "more" if len(content) > size else f"{len(content)}"
    raise UserError(f"{path} has {found} values where its header says {shape}")
  return np.frombuffer(content, np.uint8).reshape(shape)


def _decompressed(path: pathlib.Path, stored: BinaryIO) -> BinaryIO:
  return gzip.open(stored, "rb") if path.suffix == ".gz" else stored
