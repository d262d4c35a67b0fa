"""Reads the folders of images that `train.prepare_data` accepts, as lists of labeled images.

There are three kinds of folders:

- `train/CLASS/*` with `val/CLASS/*`, `validation/CLASS/*` or `test/CLASS/*`, as ImageNet has;
- `CLASS/*`, a share of which is held out by a hash of each file's name;
- the four idx files of MNIST and its relatives, compressed or not.
"""

import collections
import dataclasses
import errno
import gzip
import hashlib
import io
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from nfnet.errors import UserError, escaped, format_count
from nfnet.foreign_files.regular_files import open_regular
from nfnet.images.decoding import read_image_file
from train.data.preparation import class_folders, file_tree
from train.data.preparation.class_folders import TRAIN, VALIDATION

_CLASSES_SHOWN_MAX = 20
_SUFFIXES_SHOWN_MAX = 5
_IDX_UNSIGNED_BYTES = 0x08
# EMNIST, the largest relative of MNIST, has 547 MB.
_IDX_BYTES_MAX = 640 * 2**20
_IDX_SIDE_MAX = 4096


class UnreadableImageError(Exception):
  """Reports what is no file that can be read, such as a link that leads nowhere or a FIFO."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
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
      UnreadableImageError: it is no regular file, or nobody may read it.
      BadImageError: it is too large.
      OSError: it cannot be read.
    """
    if self.problem:
      raise UnreadableImageError(self.problem)
    try:
      return read_image_file(os.path.join(self.root, self.name))
    except OSError as error:
      # Something else may have come in its place since the folder was listed. Other errors are
      # those of the disk or the network, which may work again when the same command continues.
      if error.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM):
        raise UnreadableImageError(error.strerror) from error
      raise


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
    how: how the source was understood.
    notes: sentences about what was left out or is missing.
  """

  class_names: tuple[str, ...]
  splits: dict[str, tuple[SourceImage, ...]]
  how: str = ""
  notes: tuple[str, ...] = ()


def read_source(
  folder: str | os.PathLike[str],
  evaluation_share: float = 0.1,
  class_names: Sequence[str] = (),
  *,
  layout: str = "auto",
  merge_subfolders: bool = False,
  excluded: str | os.PathLike[str] | None = None,
) -> Source:
  """Lists the images of a folder; only idx files are opened.

  Args:
    folder: folder of one of the kinds that the module's documentation lists.
    evaluation_share: share of the images that is held out if the folder has no held-out split.
    class_names: names of the classes of idx files, which contain no names; by default, the labels
      as digits.
    layout: what the folders in `folder` are, "splits" or "classes"; "auto" finds out.
    merge_subfolders: whether images in subfolders of a class folder belong to the class.
    excluded: folder below `folder` that is not read.

  Raises:
    UserError: the folder is of none of these kinds or may be of two, or a class has no image.
  """
  root = os.fspath(folder)
  if not os.path.isdir(root):
    raise UserError(f"source folder {root} does not exist")
  if not 0 <= evaluation_share < 1:
    raise UserError(f"evaluation_share is {evaluation_share}; it must be in [0, 1)")
  try:
    if any(pathlib.Path(root).glob("train-images?idx3-ubyte*")):
      return read_idx_source(pathlib.Path(root), class_names)
    if class_names:
      raise UserError(
        f"class_names are for idx files, and {root} has none: its folders name the classes, which "
        "are in alphabetical order"
      )
    return _read_class_folders(
      root,
      evaluation_share,
      layout,
      merge_subfolders,
      None if excluded is None else os.fspath(excluded),
    )
  except OSError as error:
    raise UserError(f"cannot read {error.filename or root}: {error.strerror or error}") from error


def describe_source(source: Source) -> str:
  """Returns what was understood: classes, splits and their sizes, and what was left out."""
  lines = [f"{format_count(len(source.class_names), 'class')}; {source.how}"]
  counts = {
    split: collections.Counter(label for image in images for label in image.labels)
    for split, images in source.splits.items()
  }
  lines += (
    f"  {split}: {format_count(len(images), 'image')}" for split, images in source.splits.items()
  )
  for label, name in enumerate(source.class_names[:_CLASSES_SHOWN_MAX]):
    numbers = " + ".join(f"{count[label]:,}" for count in counts.values())
    lines.append(f"  class {label}, {name}: {numbers} images")
  if (more := len(source.class_names) - _CLASSES_SHOWN_MAX) > 0:
    lines.append(f"  and {format_count(more, 'more class')}")
  return "\n".join(map(escaped, (*lines, *source.notes)))


def describe_classes_left_out(source: Source, skipped_images: Sequence[str]) -> str:
  """Says which classes of a split have lost all of their images; empty if none has.

  Args:
    source: the images.
    skipped_images: names of the images that were left out, as the manifest has them.
  """
  skipped = frozenset(skipped_images)
  left = {
    split: tuple(image for image in images if escaped(image.name) not in skipped)
    for split, images in source.splits.items()
  }
  notes = _notes_of_classes(source.class_names, left)
  return "\n".join(escaped(note) for note in notes if note not in source.notes)


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
  class_folders.check_class_names(names, "--class_names")
  if label_max >= len(names):
    raise UserError(f"{root} has label {label_max}, but class_names has only {len(names)} names")
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


def _decompressed(path: pathlib.Path, stored: BinaryIO) -> BinaryIO:
  return gzip.open(stored, "rb") if path.suffix == ".gz" else stored


def _read_class_folders(
  root: str, evaluation_share: float, layout: str, merge_subfolders: bool, excluded: str | None
) -> Source:
  tree = file_tree.read_tree(root, excluded)
  found = class_folders.read_class_folders(tree.root, root, layout, merge_subfolders)
  splits: dict[str, tuple[SourceImage, ...]] = {
    split: tuple(
      ImageFile(file.name, (label,), root, file.size_bytes, file.modified_ns, file.problem)
      for file, label in files
    )
    for split, files in found.splits.items()
  }
  how = found.how
  if len(splits) == 1 and evaluation_share:
    splits = _hold_out(splits[TRAIN], evaluation_share)
    how += f"; {evaluation_share:.0%} of the images are held out, by a hash of each file's name"
  notes = [*found.notes, *_notes_of_tree(tree), *_notes_of_classes(found.class_names, splits)]
  return Source(found.class_names, splits, how, tuple(notes))


def _notes_of_tree(tree: file_tree.Tree) -> Iterator[str]:
  if tree.left_out:
    yield (
      f"left out: {format_count(len(tree.left_out), 'hidden or system item')}: "
      f"{file_tree.examples(tree.left_out)}"
    )
  dangling = [link for folder in tree.root.walk() for link in folder.dangling_links]
  if dangling:
    count = format_count(len(dangling), "dangling link")
    yield f"left out: {count}: {file_tree.examples(dangling)}"
  by_count = sorted(tree.ignored_suffixes.items(), key=lambda pair: -pair[1])
  for suffix, files in by_count[:_SUFFIXES_SHOWN_MAX]:
    yield f"ignored: {format_count(files, 'file')} ending in {suffix or 'nothing'}"
  if rest := sum(files for _, files in by_count[_SUFFIXES_SHOWN_MAX:]):
    yield f"ignored: {format_count(rest, 'file')} with other endings"


def _notes_of_classes(
  class_names: Sequence[str], splits: dict[str, tuple[SourceImage, ...]]
) -> Iterator[str]:
  for split, images in splits.items():
    present = {label for image in images for label in image.labels}
    absent = [name for label, name in enumerate(class_names) if label not in present]
    if absent:
      yield (
        f"note: {split} has no image of {format_count(len(absent), 'class')}: "
        f"{file_tree.examples(absent)}"
      )


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
        f"evaluation_share={evaluation_share} of {format_count(len(images), 'image')} leaves none "
        f"for {split!r}"
      )
  return {split: tuple(chosen) for split, chosen in splits.items()}
