"""Reads the folders of images that `train.prepare_data` accepts, as lists of labeled images.

There are three kinds of folders:

- `train/CLASS/**` with `val/CLASS/**`, `validation/CLASS/**` or `test/CLASS/**`, as ImageNet has;
- `CLASS/**`, a share of which is held out by a hash of each file's name;
- the four idx files of MNIST and its relatives, compressed or not.
"""

import collections
import dataclasses
import gzip
import hashlib
import io
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from nfnet.errors import UserError
from nfnet.images.decoding import read_image_file

TRAIN, VALIDATION, TEST = "train", "validation", "test"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_IDX_UNSIGNED_BYTES = 0x08
# EMNIST, the largest relative of MNIST, has 547 MB.
_IDX_BYTES_MAX = 640 * 2**20
_IDX_SIDE_MAX = 4096


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image in a file, stored unchanged.

  Attributes:
    name: path below the source folder, with forward slashes.
    labels: class indices.
    path: path of the file.
    size_bytes: length of the file.
    modified_ns: time of its last change in nanoseconds.
  """

  name: str
  labels: tuple[int, ...]
  path: str
  size_bytes: int
  modified_ns: int

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    return os.fsencode(f"{self.name} {self.labels} {self.size_bytes} {self.modified_ns}")

  def read(self) -> bytes:
    """Returns the file's bytes."""
    return read_image_file(self.path)


@dataclasses.dataclass(frozen=True)
class GrayscalePixels:
  """An image that is given as pixels and stored as PNG.

  It is PNG and not WebP, because for 28x28 photographs of clothes, lossless WebP takes 10 % fewer
  bytes and 1.8 times as long to decode (453 against 506 bytes, 146 against 81 us).

  Attributes:
    name: name that no other image of the source has.
    labels: class indices.
    pixels: uint8 [height, width].
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
    encoded = io.BytesIO()
    Image.fromarray(self.pixels).save(encoded, "PNG", compress_level=self.compression_level)
    return encoded.getvalue()


SourceImage = ImageFile | GrayscalePixels


@dataclasses.dataclass(frozen=True)
class Source:
  """Labeled images by split, each split sorted by name.

  Attributes:
    class_names: names of the classes, by class index.
    splits: images of "train" and "validation", perhaps "test".
    ignored_suffixes: number of files in class folders that are not images, by suffix.
  """

  class_names: tuple[str, ...]
  splits: dict[str, tuple[SourceImage, ...]]
  ignored_suffixes: dict[str, int] = dataclasses.field(default_factory=dict)


def read_source(
  folder: str | os.PathLike[str],
  evaluation_share: float = 0.1,
  class_names: Sequence[str] = (),
) -> Source:
  """Lists the images of a folder.

  Args:
    folder: folder of one of the kinds that the module's documentation lists.
    evaluation_share: share of the images that is held out if the folder has no held-out split.
    class_names: names of the classes of idx files, which contain no names; by default, the labels
      as digits.

  Raises:
    UserError: the folder is of none of these kinds, or a class has no image.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise UserError(f"source folder {root} does not exist")
  if not 0 <= evaluation_share < 1:
    raise UserError(f"evaluation_share is {evaluation_share}; it must be in [0, 1)")
  try:
    if any(root.glob("train-images?idx3-ubyte*")):
      return read_idx_source(root, class_names)
    return _read_class_folders(root, evaluation_share)
  except OSError as error:
    raise UserError(f"cannot read {error.filename or root}: {error.strerror or error}") from error


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
      raise UserError(f"{root}: {len(images)} {prefix} images but {len(labels)} labels")
    label_max = max(label_max, int(labels.max()))
    splits[split] = tuple(
      GrayscalePixels(f"{prefix}/{index:07d}", (int(label),), image, compression_level)
      for index, (image, label) in enumerate(zip(images, labels, strict=True))
    )
  names = tuple(class_names) or tuple(str(label) for label in range(label_max + 1))
  if label_max >= len(names):
    raise UserError(f"{root} has label {label_max}, but class_names has only {len(names)} names")
  return Source(names, splits)


def _read_idx(root: pathlib.Path, pattern: str, dimensions: int) -> np.ndarray:
  paths = sorted(root.glob(pattern))
  if not paths:
    raise UserError(f"{root} has no file {pattern.replace('?', '-').replace('*', '[.gz]')}")
  path = paths[0]
  header_bytes = 4 + 4 * dimensions
  try:
    with _open_idx(path) as file:
      header = file.read(header_bytes)
      if header[:4] != bytes((0, 0, _IDX_UNSIGNED_BYTES, dimensions)) or len(header) < header_bytes:
        raise UserError(f"{path} is no idx file of unsigned bytes with {dimensions} dimensions")
      shape = struct.unpack(f">{dimensions}I", header[4:])
      size = math.prod(shape)
      if not 0 < size <= _IDX_BYTES_MAX or (len(shape) > 1 and max(shape[1:]) > _IDX_SIDE_MAX):
        raise UserError(
          f"{path} has values of shape {shape}: there must be at least one, at most "
          f"{_IDX_BYTES_MAX:,} in all, and at most {_IDX_SIDE_MAX:,} on the side of an image"
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


def _open_idx(path: pathlib.Path) -> BinaryIO:
  # Opening a named pipe would wait for a writer.
  if not path.is_file():
    raise UserError(f"{path} is not a regular file")
  return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read_class_folders(root: pathlib.Path, evaluation_share: float) -> Source:
  split_folders = _split_folders(root)
  train_folder = split_folders[TRAIN]
  class_names = tuple(folder.name for folder in _subfolders(train_folder))
  if not class_names:
    raise UserError(f"{train_folder} has no class folders: expected {train_folder}/CLASS/IMAGE")
  splits = {}
  ignored: collections.Counter[str] = collections.Counter()
  for split, folder in split_folders.items():
    images = []
    for class_folder in _subfolders(folder):
      if class_folder.name not in class_names:
        raise UserError(f"class folder {class_folder} has no counterpart in {train_folder}")
      label = class_names.index(class_folder.name)
      found = list(_image_files(root, class_folder, label, ignored))
      if not found:
        raise UserError(f"class folder {class_folder} has no image ({', '.join(IMAGE_SUFFIXES)})")
      images += found
    if not images:
      raise UserError(f"{folder} has no class folders: expected {folder}/CLASS/IMAGE")
    splits[split] = tuple(sorted(images, key=lambda image: image.name))
  if len(splits) == 1 and evaluation_share:
    splits = _hold_out(splits[TRAIN], evaluation_share)
  return Source(class_names, splits, dict(sorted(ignored.items())))


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  if not (root / "train").is_dir():
    return {TRAIN: root}
  folders = {TRAIN: root / "train"}
  held_out = [root / name for name in ("val", "validation") if (root / name).is_dir()]
  if len(held_out) > 1:
    raise UserError(f"{root} has both val and validation: remove or rename one of them")
  test = root / "test"
  if held_out:
    folders[VALIDATION] = held_out[0]
    if test.is_dir():
      folders[TEST] = test
  elif test.is_dir():
    folders[VALIDATION] = test
  return folders


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
  )


def _image_files(
  root: pathlib.Path,
  class_folder: pathlib.Path,
  label: int,
  ignored: collections.Counter[str],
) -> Iterable[ImageFile]:
  for folder, _, names in os.walk(class_folder, followlinks=True, onerror=_raise):
    for name in names:
      path = pathlib.Path(folder, name)
      if name.startswith("."):
        continue
      if path.suffix.lower() not in IMAGE_SUFFIXES:
        ignored[path.suffix.lower()] += 1
        continue
      status = path.stat()
      yield ImageFile(
        name=path.relative_to(root).as_posix(),
        labels=(label,),
        path=str(path),
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
      )


def _raise(error: OSError) -> None:
  raise error


def _hold_out(
  images: Sequence[SourceImage], evaluation_share: float
) -> dict[str, tuple[SourceImage, ...]]:
  splits: dict[str, list[SourceImage]] = {TRAIN: [], VALIDATION: []}
  for image in images:
    # The split depends only on the name, so that adding images moves no other image between splits.
    drawn = int.from_bytes(hashlib.sha256(os.fsencode(image.name)).digest()[:8], "big") / 2**64
    splits[VALIDATION if drawn < evaluation_share else TRAIN].append(image)
  for split, chosen in splits.items():
    if not chosen:
      raise UserError(
        f"evaluation_share={evaluation_share} of {len(images)} images leaves none for {split!r}"
      )
  return {split: tuple(chosen) for split, chosen in splits.items()}
