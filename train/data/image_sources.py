"""Reads the sources that `train.prepare_data` accepts, as lists of labeled images.

The kind of a source is recognized from what lies there, or named:

| format | what it is |
|---|---|
| class_folders | `train/CLASS/*` with `val/CLASS/*`, or only `CLASS/*` |
| idx | the four files of MNIST and its relatives |
| python | MODULE:FUNCTION, which yields examples |

`train.data.sources` has a module for each of them.
"""

import collections
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from nfnet.errors import UserError, escaped, format_count
from train.data.sources.folders import read_class_folders
from train.data.sources.idx_files import read_idx_source
from train.data.sources.labeling import notes_of_classes
from train.data.sources.own_source import is_reference, load_function, read_own_source
from train.data.sources.source import Options, Source

_CLASSES_SHOWN_MAX = 20


def _read_idx(root: str, options: Options) -> Source:
  return read_idx_source(pathlib.Path(root), options.class_names)


_READERS: dict[str, Callable[[str, Options], Source]] = {
  "class_folders": read_class_folders,
  "idx": _read_idx,
}
FORMATS = ("auto", *_READERS, "python")


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
    source: path of one of the kinds that the module's documentation lists; or MODULE:FUNCTION, or
      the function itself, as `train.data.sources.own_source` describes it.
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
    return read_own_source(source, chosen, getattr(source, "__name__", "source"))
  path = os.fspath(source)
  if source_format == "python" or (source_format == "auto" and is_reference(path)):
    if not is_reference(path):
      raise UserError(f"--source={path} is not MODULE:FUNCTION, which --format=python needs")
    return read_own_source(load_function(path), chosen, path)
  if not os.path.isdir(path):
    raise UserError(f"source folder {path} does not exist")
  try:
    return _READERS[_recognize(path, source_format)](path, chosen)
  except OSError as error:
    raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _recognize(root: str, source_format: str) -> str:
  if source_format != "auto":
    return source_format
  if any(pathlib.Path(root).glob("train-images?idx3-ubyte*")):
    return "idx"
  return "class_folders"


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
  notes = notes_of_classes(source.class_names, left)
  return "\n".join(escaped(note) for note in notes if note not in source.notes)
