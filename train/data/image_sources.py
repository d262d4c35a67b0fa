"""Reads the sources that `train.prepare_data` accepts, as lists of labeled images.

The kind of a source is recognized from what lies there, or named:

| format | what it is |
|---|---|
| class_folders | `train/CLASS/*` with `val/CLASS/*`, or only `CLASS/*` |
| idx | the four files of MNIST and its relatives |
| cifar | CIFAR-10 and CIFAR-100, in their binary version |
| table | a folder of images with `labels.csv`, or another table |
| imagenet | `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` and the devkit |
| class_tars | one tar file for each class, as ImageNet-21k has |
| webdataset | tar files with labels beside the images |
| parquet | parquet files with a column of images and one of labels, as Hugging Face has |
| tfds | ArrayRecord files of TensorFlow Datasets |
| python | MODULE:FUNCTION or PATH.py:FUNCTION, which yields examples |

`train.data.sources` has a module for each of them.
"""

import collections
import glob
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nfnet.errors import UserError, escaped, format_count
from train.config.own_functions import is_reference, load_function
from train.data.preparation import file_tree
from train.data.sources.cifar_files import is_cifar, read_cifar
from train.data.sources.folders import read_class_folders
from train.data.sources.idx_files import read_idx_source
from train.data.sources.label_table import find_table, read_table
from train.data.sources.labeling import notes_of_classes
from train.data.sources.own_source import read_own_source
from train.data.sources.parquet import read_parquet
from train.data.sources.shard_files import (
  COMPRESSED_SUFFIXES,
  expand_braces,
  find_files,
  is_pattern,
)
from train.data.sources.source import Options, Source
from train.data.sources.tars.class_tars import read_class_tars
from train.data.sources.tars.imagenet import is_imagenet, read_imagenet
from train.data.sources.tars.webdataset import has_labels, read_webdataset
from train.data.sources.tfds import find_tfds, is_tfds, read_tfds

_CLASSES_SHOWN_MAX = 20
_PACKED_SUFFIXES = (*COMPRESSED_SUFFIXES, ".zip", ".7z", ".rar")


def _read_idx(root: str, options: Options) -> Source:
  return read_idx_source(pathlib.Path(root), options.class_names)


def _read_cifar(path: str, _: Options) -> Source:
  return read_cifar(path)


class _Format(NamedTuple):
  """A kind of source.

  Attributes:
    read: function that lists its images.
    options: those of `SELECTIVE_OPTIONS` that it reads; all others are refused.
  """

  read: Callable[[Any, Options], Source]
  options: tuple[str, ...]


def _read_python(path: str, options: Options) -> Source:
  if not is_reference(path):
    raise UserError(
      f"--source={path} is not MODULE:FUNCTION or PATH.py:FUNCTION, which --format=python needs"
    )
  return read_own_source(load_function("source", path), options, path)


_FIELDS = ("class_names", "image_field", "label_field")
_FORMATS = {
  "class_folders": _Format(read_class_folders, ("layout", "merge_subfolders")),
  "idx": _Format(_read_idx, ("class_names",)),
  "cifar": _Format(_read_cifar, ()),
  "table": _Format(read_table, (*_FIELDS, "labels")),
  "imagenet": _Format(read_imagenet, (*_FIELDS, "labels")),
  "class_tars": _Format(read_class_tars, ("class_names",)),
  "webdataset": _Format(read_webdataset, _FIELDS),
  "parquet": _Format(read_parquet, _FIELDS),
  "tfds": _Format(read_tfds, _FIELDS),
  "python": _Format(_read_python, ("class_names",)),
}
FORMATS = ("auto", *_FORMATS)
SELECTIVE_OPTIONS = (
  "class_names",
  "layout",
  "merge_subfolders",
  "labels",
  "image_field",
  "label_field",
)
"""Fields of `Options` that only some formats read."""
_FOLDER_FORMATS = ("class_folders", "idx", "tfds")


def read_source(
  source: str | os.PathLike[str] | Callable[[], Any],
  evaluation_share: float = 0.1,
  class_names: Sequence[str] = (),
  *,
  source_format: str = "auto",
  excluded: str | os.PathLike[str] | None = None,
  **options: Any,
) -> Source:
  """Lists the images of a source; as few bytes are read as its kind allows.

  Args:
    source: path of one of the kinds that the module's documentation lists; or MODULE:FUNCTION,
      PATH.py:FUNCTION or the function itself, as `train.data.sources.own_source` describes it.
    evaluation_share: share of the images that is held out if there is no held-out split.
    class_names: names of the classes of a source whose labels are numbers; by default, its own
      names or the numbers.
    source_format: one of `FORMATS`; "auto" finds out.
    excluded: folder below the source that is not read.
    **options: further fields of `train.data.sources.source.Options`.

  Raises:
    UserError: the source is of none of these kinds or may be of two, or it is damaged.
  """
  chosen = Options(
    evaluation_share=evaluation_share,
    class_names=tuple(class_names),
    excluded=None if excluded is None else os.fspath(excluded),
    **options,
  )
  if callable(source):
    name = getattr(source, "__name__", "source")
    _refuse_unread_options("python", chosen, name)
    return read_own_source(source, chosen, name)
  path = os.fspath(source)
  if source_format == "python" or (source_format == "auto" and is_reference(path)):
    _refuse_unread_options("python", chosen, path)
    return _FORMATS["python"].read(path, chosen)
  if not os.path.exists(path) and not is_pattern(path):
    hint = ": write braces, such as {000..123}" if re.search(r"[*?[]", path) else ""
    raise UserError(f"source folder {path} does not exist{hint}")
  try:
    if source_format == "auto":
      source_format = _recognize(path, chosen)
    elif source_format in _FOLDER_FORMATS and not os.path.isdir(path):
      raise UserError(f"--source={path} is not a folder, which --format={source_format} needs")
    _refuse_unread_options(source_format, chosen, path)
    return _FORMATS[source_format].read(path, chosen)
  except OSError as error:
    raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _refuse_unread_options(source_format: str, options: Options, where: str) -> None:
  """Raises UserError if the user gives an option that sources of this format do not have."""
  defaults = Options()
  for name in SELECTIVE_OPTIONS:
    given = getattr(options, name) != getattr(defaults, name)
    if given and name not in _FORMATS[source_format].options:
      others = [other for other, one in _FORMATS.items() if name in one.options]
      raise UserError(
        f"--{name} is for sources of the format {' or '.join(others)}, and {where} is read as "
        f"{source_format}: leave out the flag, or give another --format"
      )


def _recognize(path: str, options: Options) -> str:
  """Returns the format of what lies at a path.

  Raises:
    UserError: it may be of two formats or is of none.
    OSError: it cannot be read.
  """
  if not os.path.isdir(path):
    name = expand_braces(path)[0] if is_pattern(path) else path
    suffix = os.path.splitext(name)[1].lower()
    if is_imagenet(path):
      return "imagenet"
    if is_cifar(path):
      return "cifar"
    if suffix == ".tar":
      return _recognize_tar(path, options)
    if suffix == ".parquet":
      return "parquet"
    if suffix in (".csv", ".tsv"):
      return "table"
    if name.lower().endswith(_PACKED_SUFFIXES):
      raise UserError(
        f"--source={path} is compressed, so nothing in it can be found: unpack it, or decompress "
        "it to .tar"
      )
    raise UserError(
      f"--source={path} is a file of no kind that is known ({suffix or 'no extension'}): give a "
      "folder, a .tar, a .parquet or a .csv"
    )
  if glob.glob(os.path.join(glob.escape(path), "train-images?idx3-ubyte*")):
    return "idx"
  if is_imagenet(path):
    return "imagenet"
  if is_cifar(path):
    return "cifar"
  if is_tfds(path):
    return "tfds"
  found = []
  if options.labels or find_table(path):
    found.append("table")
  if _has_files(path, ".tar"):
    found.append(_recognize_tar(path, options))
  if _has_files(path, ".parquet"):
    found.append("parquet")
  if found and not options.labels:
    # A table needs a folder for its images; with several, each of them may be a class.
    folders = _folders_with_images(path, options)
    if len(folders) > (found == ["table"]):
      found.append("class_folders")
  if len(found) > 1:
    choices = " or ".join(f"--format={name}" for name in found)
    raise UserError(f"{path} may be read in {len(found)} ways: give {choices}")
  if not found and (versions := find_tfds(path)):
    raise UserError(f"{path} holds data sets of TensorFlow Datasets: give --source={versions[0]}")
  if (
    not found
    and (archive := _first_file(path, _PACKED_SUFFIXES))
    and not _folders_with_images(path, options)
  ):
    raise UserError(
      f"{path} has no folder with images, but {archive}: unpack it, or decompress it to .tar"
    )
  return found[0] if found else "class_folders"


def _recognize_tar(path: str, options: Options) -> str:
  root, names = find_files(path, ".tar", options.excluded)
  return "webdataset" if has_labels(root, names) else "class_tars"


def _has_files(root: str, suffixes: str | tuple[str, ...]) -> bool:
  """Returns whether such files lie in a folder or in one directly below it."""
  return _first_file(root, suffixes) is not None


def _first_file(root: str, suffixes: str | tuple[str, ...]) -> str | None:
  """Returns a file whose name ends so, in a folder or in one directly below it."""
  folders = (entry for entry in os.scandir(root) if entry.is_dir())
  own = (entry.path for entry in folders if not file_tree.is_of_the_system(entry.name))
  places = [root, *sorted(own)]
  return next(
    (
      os.path.join(place, name)
      for place in places
      for name in sorted(os.listdir(place))
      if name.lower().endswith(suffixes) and not file_tree.is_of_the_system(name)
    ),
    None,
  )


def _folders_with_images(root: str, options: Options) -> list[str]:
  """Returns the folders directly below another that have an image anywhere below them."""
  excluded = options.excluded and os.path.realpath(options.excluded)
  found = []
  for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
    if (
      entry.is_dir()
      and not file_tree.is_of_the_system(entry.name)
      and os.path.realpath(entry.path) != excluded
      and any(
        name.lower().endswith(file_tree.IMAGE_SUFFIXES)
        for _, _, names in os.walk(entry.path)
        for name in names
      )
    ):
      found.append(entry.name)
  return found


def describe_source(source: Source) -> str:
  """Returns what was understood: classes, splits and their sizes, and what was left out."""
  lines = [f"{format_count(len(source.class_names), 'class')}; {source.how}"]
  usable = {
    split: [image for image in images if not image.problem]
    for split, images in source.splits.items()
  }
  counts = {
    split: collections.Counter(label for image in images for label in image.labels)
    for split, images in usable.items()
  }
  lines += (f"  {split}: {format_count(len(images), 'image')}" for split, images in usable.items())
  lines += (f"  {split}: {_balance(source, count)}" for split, count in counts.items())
  for label, name in enumerate(source.class_names[:_CLASSES_SHOWN_MAX]):
    numbers = " + ".join(f"{count[label]:,}" for count in counts.values())
    lines.append(f"  class {label}, {name}: {numbers} images")
  if (more := len(source.class_names) - _CLASSES_SHOWN_MAX) > 0:
    lines.append(f"  and {format_count(more, 'more class')}")
  return "\n".join(map(escaped, (*lines, *_notes_of_damage(source), *source.notes)))


def _notes_of_damage(source: Source) -> Iterator[str]:
  """Yields a sentence for each split of which listing has found images that cannot be read."""
  for split, images in source.splits.items():
    damaged = [image.name for image in images if image.problem]
    if damaged:
      count = format_count(len(damaged), "image")
      yield (f"not counted: {count} of {split} that cannot be read: {file_tree.examples(damaged)}")


def _balance(source: Source, counts: Mapping[int, int]) -> str:
  """Returns how many images the classes of a split have."""
  numbers = [counts[label] for label in range(len(source.class_names))]
  least, most = min(numbers), max(numbers)
  if least == most:
    return f"each class has {format_count(least, 'image')}"
  fewest, largest = (source.class_names[numbers.index(one)] for one in (least, most))
  median = statistics.median(numbers)
  return (
    f"classes have {format_count(least, 'image')} ({fewest}) to {most:,} ({largest}), median "
    f"{median:,.10g}"
  )


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
  notes = notes_of_classes(source.class_names, left)
  return "\n".join(escaped(note) for note in notes if note not in source.notes)
