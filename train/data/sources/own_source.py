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

from nfnet.errors import UserError, quoted, short_text
from nfnet.images.decoding import read_image_file
from train.data.preparation.class_folders import TRAIN
from train.data.sources.images import encode_png
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
      Bytes and pixels stay in memory until the end.
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
    image = self.image() if callable(self.image) else self.image
    if isinstance(image, str | os.PathLike):
      try:
        return read_image_file(image)
      except FileNotFoundError as error:
        raise UnreadableImageError(error.strerror) from error
    if isinstance(image, np.ndarray):
      return encode_png(image)
    if not isinstance(image, bytes):
      raise UserError(
        f"image {quoted(self.name)}: its function returned {quoted(image)}, must be bytes or an "
        "array"
      )
    return image


def read_own_source(function: Callable[[], Any], options: Options, where: str) -> Source:
  """Lists the examples that a user's function yields.

  Args:
    function: function or class without arguments; see the module's documentation.
    options: what the user says.
    where: the function, for messages.

  Raises:
    UserError: it yields something else than examples, or they do not make a source.
  """
  made = function()
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
  is_pickled = False
  for number, example in enumerate(examples):
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
    if callable(example.image) and not is_pickled:
      try:
        pickle.dumps(example.image)
      # Besides PicklingError, it raises AttributeError and TypeError, and what objects raise.
      except Exception as error:
        raise UserError(
          f"{place}: its function cannot be sent to another process ({short_text(error)}); take "
          "functools.partial of a function of a module"
        ) from error
      is_pickled = True
    yield Labeled(example.split, _labels(example, place), _Make(example, *_facts(example, place)))


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
  if isinstance(labels, str | np.integer) or not isinstance(labels, Iterable):
    labels = (labels,)
  labels = tuple(int(one) if isinstance(one, np.integer) else one for one in labels)
  if not labels or not all(type(label) in (str, int) for label in labels):
    raise UserError(f"{place} has the labels {quoted(list(labels))}, must be names or numbers")
  return labels


def _facts(example: Example, place: str) -> tuple[int, str]:
  """Returns an image's size in bytes, and text that is different for a different image."""
  image = example.image
  if isinstance(image, bytes):
    return len(image), hashlib.sha256(image).hexdigest()
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
      raise UserError(
        f"{place} has pixels of {image.dtype} {list(image.shape)}, must be uint8 [height, width] "
        "or [height, width, 3]"
      )
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
