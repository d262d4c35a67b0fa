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
that has what `SourceImage` lists.
"""

import dataclasses
import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nfnet.errors import UserError, format_count, quoted, short_text
from nfnet.images.headers import BadImageError
from train.config.own_functions import raised
from train.data.preparation.class_folders import TRAIN
from train.data.sources.images import encode_png, read_file
from train.data.sources.labeling import Labeled, make_source
from train.data.sources.source import SPLITS, Options, Source, SourceImage, UnreadableImageError

# ImageNet's images have 110 kB on average.
_UNKNOWN_SIZE_BYTES = 110_000


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

  def fingerprint(self) -> bytes:
    return os.fsencode(f"{self.name} {self.labels} {self.size_bytes} {self.version}")

  def read(self) -> bytes:
    image = self._called() if callable(self.image) else self.image
    if isinstance(image, str | os.PathLike):
      try:
        return read_file(image)
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
    return made
  if not isinstance(made, Iterable):
    raise UserError(f"{where} returned {quoted(made)}, must be examples or a Source")
  class_names = getattr(made, "class_names", getattr(function, "class_names", ()))
  return make_source(
    _labeled(made, where),
    options,
    how=f"examples of the Python source {where}",
    where=where,
    class_names=tuple(class_names),
  )


def _labeled(examples: Iterable[Any], where: str) -> Iterator[Labeled]:
  for number, example in enumerate(_from_user(examples, where)):
    place = f"{where}: example {number}"
    if not isinstance(example, Example):
      raise UserError(f"{place} is {quoted(example)}, must be {__name__}.Example")
    if not isinstance(example.name, str) or not example.name:
      raise UserError(f"{place} has the name {quoted(example.name)}, must be text")
    place += f" ({quoted(example.name)})"
    if example.split not in SPLITS:
      raise UserError(
        f"{place} has the split {quoted(example.split)}, must be one of {', '.join(SPLITS)}"
      )
    if callable(example.image):
      try:
        pickle.dumps(example.image)
      # Besides PicklingError, it raises AttributeError and TypeError, and what objects raise.
      except Exception as error:
        raise UserError(
          f"{place}: its function cannot be sent to another process ({short_text(error)}); take "
          "functools.partial of a function of a module"
        ) from error
    yield Labeled(example.split, _labels(example, place), _Make(example, *_facts(example, place)))


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
  size_bytes: int
  version: str

  def __call__(self, labels: tuple[int, ...]) -> _OwnImage:
    example = self.example
    return _OwnImage(example.name, labels, example.image, self.size_bytes, self.version)


def _labels(example: Example, place: str) -> tuple:
  labels = example.labels
  if isinstance(labels, np.ndarray | np.generic):
    # Of a single value, this is not a list.
    labels = labels.tolist()
  if isinstance(labels, str) or not isinstance(labels, Iterable):
    labels = (labels,)
  labels = tuple(one.item() if isinstance(one, np.generic) else one for one in labels)
  if not labels or not all(type(label) in (str, int) for label in labels):
    raise UserError(f"{place} has the labels {quoted(list(labels))}, must be names or numbers")
  return labels


def _facts(example: Example, place: str) -> tuple[int, str]:
  """Returns an image's size in bytes, and text that is different for a different image."""
  image = example.image
  if isinstance(image, bytes):
    return len(image), hashlib.sha256(image).hexdigest()
  if isinstance(image, np.ndarray):
    _check_pixels(image, place)
    content = np.ascontiguousarray(image)
    return image.nbytes, f"{image.shape} {hashlib.sha256(content).hexdigest()}"
  if isinstance(image, str | os.PathLike):
    try:
      status = os.stat(image)
    except OSError:
      # It is reported, or left out, when it is read.
      return 0, f"{os.fspath(image)} missing"
    return status.st_size, f"{os.fspath(image)} {status.st_mtime_ns}"
  if callable(image):
    return example.size_bytes, example.version
  raise UserError(
    f"{place} has the image {quoted(image)}, must be a path, bytes, an array, or a function"
  )


def _check_pixels(pixels: np.ndarray, place: str) -> None:
  is_image = pixels.ndim in (2, 3) and pixels.shape[2:] in ((), (3,)) and pixels.size > 0
  if pixels.dtype != np.uint8 or not is_image:
    raise UserError(
      f"{place} has pixels of {pixels.dtype} {list(pixels.shape)}, must be uint8 [height, width] "
      "or [height, width, 3]"
    )
