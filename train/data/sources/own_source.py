"""Python code of a user as a source: a function that yields examples.

    python -m train.prepare_data --source=my_module:my_source --out=DIR

`my_source` is a function without arguments, or a class, in a module that Python finds from this
folder; `--source=PATH.py:my_source` names its file instead. What it returns is iterated over once
and yields an `Example` for each image. It may have an attribute `class_names`, for labels that are
numbers or classes in an order of their own.

    def my_source():
      for row in csv.DictReader(open("photographs.csv")):
        yield Example(row["id"], row["species"], functools.partial(download, row["address"]))

It may also return a `train.data.sources.source.Source`, whose images may be objects of any class
that has what `SourceImage` lists. Whatever is returned is checked as it is listed.
"""

import dataclasses
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nfnet.errors import UserError, format_count, quoted, short_text
from nfnet.images.headers import BadImageError
from nfnet.system.paths import local_path
from train.config.own_functions import raised
from train.data.preparation.class_folders import TRAIN, check_class_names
from train.data.sources.images import encode_png, read_file
from train.data.sources.labeling import Labeled, make_source
from train.data.sources.source import SPLITS, Options, Source, SourceImage, UnreadableImageError

# ImageNet's images have 110 kB on average.
_UNKNOWN_SIZE_BYTES = 110_000
# Also where pathlib has made one slash of two.
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/")
_IMAGE_ATTRIBUTES = (
  *("name", "labels", "size_bytes", "group", "problem"),
  *("fingerprint", "read"),
)


@dataclasses.dataclass(frozen=True)
class Example:
  """One labeled image.

  Attributes:
    name: name that no other image of the split has. The order of the records depends on it, and so
      does the split of an image if the source has no held-out split.
    labels: name or index of its class, or a sequence of several.
    image: path of a file; or a function without arguments that returns the bytes of a JPEG, PNG or
      WebP file, or pixels; or such bytes or pixels themselves. Pixels are uint8 [height, width] or
      [height, width, 3] and are stored as PNG. A function is called later, in another process, so
      it must be one that `pickle` accepts, such as `functools.partial` of a function of a module.
      Bytes and pixels stay in memory until the end. If it raises `UnreadableImageError`, the image
      counts as damaged; OSError means that a later try may succeed.
    split: "train", "validation" or "test". If all are "train", some images are held out.
    size_bytes: number of bytes that a function will return, about.
    version: text that changes whenever a function returns another image than before, if it can.
  """

  name: str
  labels: str | int | Sequence[str] | Sequence[int]
  image: bytes | np.ndarray | str | os.PathLike[str] | Callable[[], bytes | np.ndarray]
  split: str = TRAIN
  size_bytes: int = _UNKNOWN_SIZE_BYTES
  version: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class _OwnImage(SourceImage):
  name: str
  labels: tuple[int, ...]
  image: Any
  size_bytes: int
  version: str
  problem: str = ""

  def fingerprint(self) -> bytes:
    return os.fsencode(f"{self.name} {self.labels} {self.size_bytes} {self.version}")

  def read(self) -> bytes:
    if self.problem:
      raise UnreadableImageError(self.problem)
    image = self._called() if callable(self.image) else self.image
    if isinstance(image, str | os.PathLike):
      try:
        return read_file(_checked_path(image, f"image {quoted(self.name)}"))
      except FileNotFoundError as error:
        raise UnreadableImageError(error.strerror) from error
    if isinstance(image, np.ndarray):
      _check_pixels(image, f"image {quoted(self.name)}")
      return encode_png(image)
    if not isinstance(image, bytes):
      raise UserError(
        f"image {quoted(self.name)}: its function returned {quoted(image)}, must be bytes or an "
        "array"
      )
    return image

  def _called(self) -> Any:
    try:
      return self.image()
    # It says itself that the image is to be left out, or that a later try may succeed.
    except (UnreadableImageError, BadImageError, OSError, UserError):
      raise
    except Exception as error:
      raise UserError(f"image {quoted(self.name)}: its function raised {raised(error)}") from error


def read_own_source(function: Callable[[], Any], options: Options, where: str) -> Source:
  """Lists the examples that a user's function yields.

  Args:
    function: function or class without arguments; see the module's documentation.
    options: what the user says.
    where: the function, for messages.

  Raises:
    UserError: it raises an error or yields something else than examples, or these do not make a
      source.
  """
  try:
    made = function()
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"{where} raised {raised(error)}") from error
  if isinstance(made, Source):
    _check_source(made, where)
    if options.class_names and options.class_names != tuple(made.class_names):
      raise UserError(f"--class_names: {where} names its classes itself; leave out the flag")
    return made
  if isinstance(made, str | bytes) or not isinstance(made, Iterable):
    raise UserError(f"{where} returned {quoted(made)}, must be examples or a Source")
  class_names = getattr(made, "class_names", getattr(function, "class_names", ()))
  class_names = _checked_class_names(class_names, where)
  return make_source(
    _labeled(made, where),
    options,
    how=f"examples of the Python source {where}",
    where=where,
    class_names=class_names,
  )


def _labeled(examples: Iterable[Any], where: str) -> Iterator[Labeled]:
  for number, example in enumerate(_from_user(examples, where)):
    place = f"{where}: example {number}"
    if not isinstance(example, Example):
      raise UserError(f"{place} is {quoted(example)}, must be {__name__}.Example")
    _check_field("name", example.name, _is_name(example.name), "text", place)
    place += f" ({quoted(example.name)})"
    is_split = isinstance(example.split, str) and example.split in SPLITS
    _check_field("split", example.split, is_split, f"one of {', '.join(SPLITS)}", place)
    _check_field("version", example.version, _is_text(example.version), "text", place)
    is_size = _is_integer(example.size_bytes) and example.size_bytes >= 0
    _check_field("size_bytes", example.size_bytes, is_size, "a number of bytes", place)
    if callable(example.image):
      try:
        pickle.dumps(example.image)
      # Besides PicklingError, it raises AttributeError and TypeError, and what objects raise.
      except Exception as error:
        raise UserError(
          f"{place}: its function cannot be sent to another process ({short_text(error)}); take "
          "functools.partial of a function of a module"
        ) from error
    yield Labeled(example.split, _labels(example, place), _Make(example, _facts(example, place)))


def _check_source(source: Source, where: str) -> None:
  """Raises UserError unless a source that a user's code has made is one."""
  place = f"{where}: the Source"
  is_sequence = isinstance(source.class_names, list | tuple)
  _check_field("class_names", source.class_names, is_sequence, "a tuple of names", place)
  check_class_names(_checked_class_names(source.class_names, place), place)
  if len(source.class_names) < 2:
    raise UserError(f"{place} has {format_count(len(source.class_names), 'class')}, must have two")
  is_notes = isinstance(source.notes, list | tuple) and all(map(_is_text, source.notes))
  _check_field("notes", source.notes, is_notes, "a list of texts", place)
  _check_field("how", source.how, _is_text(source.how), "text", place)
  splits = source.splits
  is_splits = isinstance(splits, Mapping) and all(isinstance(one, str) for one in splits)
  _check_field("splits", splits, is_splits, "images by split", place)
  if unknown := [split for split in splits if split not in SPLITS]:
    raise UserError(
      f"{place} has the split {quoted(unknown[0])}, must be one of {', '.join(SPLITS)}"
    )
  if TRAIN not in splits:
    raise UserError(f"{place} has no split {TRAIN}, must have one")
  for split, images in splits.items():
    if not isinstance(images, list | tuple) or not images:
      raise UserError(
        f"{place} has {quoted(images)} as the split {split}, must be a tuple of at least one image"
      )
    names: set[str] = set()
    for number, image in enumerate(images):
      _check_image(image, len(source.class_names), f"{place}: image {number} of {split}")
      if image.name in names:
        raise UserError(f"{place} has two images named {quoted(image.name)} in {split}: rename one")
      names.add(image.name)


def _check_image(image: Any, num_classes: int, place: str) -> None:
  absent = [name for name in _IMAGE_ATTRIBUTES if not hasattr(image, name)]
  if absent:
    raise UserError(
      f"{place} is {quoted(image)} without {', '.join(absent)}: make its class one of "
      f"{SourceImage.__module__}.SourceImage"
    )
  _check_field("name", image.name, _is_name(image.name), "text", place)
  place += f" ({quoted(image.name)})"
  is_labels = isinstance(image.labels, tuple) and all(
    _is_integer(label) and 0 <= label < num_classes for label in image.labels
  )
  _check_field(
    "labels", image.labels, is_labels, f"a tuple of class indices below {num_classes}", place
  )
  if not image.labels and not image.problem:
    raise UserError(f"{place} has no labels, must have one")
  is_size = _is_integer(image.size_bytes) and image.size_bytes >= 0
  _check_field("size_bytes", image.size_bytes, is_size, "a number of bytes", place)
  for name in ("group", "problem"):
    value = getattr(image, name)
    _check_field(name, value, _is_text(value), "text", place)
  for name in ("read", "fingerprint"):
    value = getattr(image, name)
    _check_field(name, value, callable(value), "a method", place)


def _checked_class_names(given: Any, place: str) -> tuple[str, ...]:
  is_text = isinstance(given, str | bytes)
  names = () if is_text or not isinstance(given, Iterable) else tuple(given)
  is_names = isinstance(given, Iterable) and not is_text and all(map(_is_text, names))
  _check_field("class_names", given, is_names, "a list of names", place)
  return names


def _check_field(name: str, value: Any, is_right: bool, must_be: str, place: str) -> None:
  if not is_right:
    shown = list(value) if isinstance(value, tuple) else value
    raise UserError(f"{place} has the {name} {quoted(shown)}, must be {must_be}")


def _is_name(value: Any) -> bool:
  return _is_text(value) and value != ""


def _is_text(value: Any) -> bool:
  """Returns whether a value is text that a file system might have as a name."""
  try:
    return isinstance(value, str) and bool(os.fsencode(value) or True)
  except UnicodeEncodeError:
    return False


def _is_integer(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _from_user(examples: Iterable[Any], where: str) -> Iterator[Any]:
  """Yields what a user's iterator yields; of its errors, a message says where they come from."""
  count = 0
  try:
    for example in examples:
      yield example
      count += 1
  except UserError:
    raise
  except Exception as error:
    after = format_count(count, "example")
    raise UserError(f"{where} raised {raised(error)} after {after}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Make:
  """Makes the image of an example once the indices of its classes are known."""

  example: Example
  facts: "_Facts"

  def __call__(self, labels: tuple[int, ...]) -> _OwnImage:
    return _OwnImage(self.example.name, labels, self.example.image, *self.facts)


class _Facts(NamedTuple):
  """Holds what is known of an image before it is read.

  Attributes:
    size_bytes: its size.
    version: text that is different for a different image.
    problem: why it cannot be read; empty if that is not known.
  """

  size_bytes: int
  version: str
  problem: str = ""


def _labels(example: Example, place: str) -> tuple:
  labels = example.labels
  if isinstance(labels, np.ndarray | np.generic):
    # Of a single value, this is not a list.
    labels = labels.tolist()
  if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
    labels = (labels,)
  labels = tuple(one.item() if isinstance(one, np.generic) else one for one in labels)
  if not labels or not all(type(label) in (str, int) for label in labels):
    raise UserError(f"{place} has the labels {quoted(list(labels))}, must be names or numbers")
  return labels


def _facts(example: Example, place: str) -> _Facts:
  image = example.image
  if isinstance(image, bytes):
    return _Facts(len(image), hashlib.sha256(image).hexdigest())
  if isinstance(image, np.ndarray):
    _check_pixels(image, place)
    content = np.ascontiguousarray(image)
    return _Facts(image.nbytes, f"{image.shape} {hashlib.sha256(content).hexdigest()}")
  if isinstance(image, str | os.PathLike):
    path = _checked_path(image, place)
    try:
      status = os.stat(path)
    except FileNotFoundError as error:
      return _Facts(0, f"{path} missing", error.strerror)
    except OSError:
      # It is reported, or left out, when it is read.
      return _Facts(0, f"{path} missing")
    return _Facts(status.st_size, f"{path} {status.st_mtime_ns}")
  if callable(image):
    return _Facts(int(example.size_bytes), example.version)
  raise UserError(
    f"{place} has the image {quoted(image)}, must be a path, bytes, an array, or a function"
  )


def _checked_path(path: str | os.PathLike, place: str) -> str:
  """Returns the path of an image; raises UserError if no file of this machine can have it."""
  text = os.fspath(path)
  if not _is_name(text) or "\0" in text:
    raise UserError(f"{place} has the path {quoted(text)}, which no file can have: correct it")
  # Any other path may be that of a file, whose name need not be UTF-8.
  if _SCHEME.match(text):
    local_path(f"{place}: image", text)
  return text


def _check_pixels(pixels: np.ndarray, place: str) -> None:
  is_image = pixels.ndim in (2, 3) and pixels.shape[2:] in ((), (3,)) and pixels.size > 0
  if pixels.dtype != np.uint8 or not is_image:
    raise UserError(
      f"{place} has pixels of {pixels.dtype} {list(pixels.shape)}, must be uint8 [height, width] "
      "or [height, width, 3]"
    )
