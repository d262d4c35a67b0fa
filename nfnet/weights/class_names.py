"""Compares classes by their names, so that a class is never taken for another one of its index."""

import collections
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from nfnet.errors import UserError, format_count, quoted
from nfnet.foreign_files.regular_files import read_regular_file

_NAMES_SHOWN = 5
_NAMES_FILE_BYTES_MAX = 16 * 2**20
_IMAGENET_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")


class Matching(NamedTuple):
  """The network's classes, and which of them the classes of a data set are.

  Attributes:
    names: names of the network's classes, by index.
    classes: index of each of the data set's classes among the network's.
    how: description of what the matching rests on.
  """

  names: tuple[str, ...]
  classes: tuple[int, ...]
  how: str


def composed(name: str) -> str:
  """Returns a name with one character for each letter, by which names are compared.

  macOS may store the letters of a folder's name apart from their accents; copied to another system,
  the folder keeps a name that looks the same and is not.
  """
  return unicodedata.normalize("NFC", name)


def match_classes(
  network: Sequence[str], data: Sequence[str], *, network_source: str, data_source: str
) -> tuple[int, ...]:
  """Finds the network's class of each class of a data set.

  Args:
    network: names of the network's classes, by index.
    data: names of the data set's classes, by index; all or some of the network's, in any order.
    network_source: description of the network for the error message.
    data_source: description of the data set for the error message.

  Returns:
    Index of each of the data set's classes among the network's.

  Raises:
    UserError: the network does not know some class, or a name belongs to two classes.
  """
  network, data = tuple(map(composed, network)), tuple(map(composed, data))
  if network == data:
    return tuple(range(len(data)))
  indices = {name: index for index, name in enumerate(network)}
  unknown = [name for name in data if name not in indices]
  if unknown:
    known = set(data)
    absent = [name for name in network if name not in known]
    raise UserError(
      f"{data_source} has {len(unknown)} of {format_count(len(data), 'class')} that "
      f"{network_source} does not know: {_shown(unknown)}; of its "
      f"{format_count(len(network), 'class')}, the data set lacks {len(absent)}: "
      f"{_shown(absent)}; classes are matched by name, so give a data set with the same names"
    )
  for source, names in ((network_source, network), (data_source, data)):
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
      raise UserError(
        f"{source} has two classes named {quoted(twice[0])}; classes are matched by name"
      )
  return tuple(indices[name] for name in data)


def match_unnamed_classes(
  num_classes: int, data: Sequence[str], *, network_source: str, data_source: str
) -> Matching:
  """Finds the classes of a data set among those of a network whose file does not name them.

  This is possible for ImageNet. The released classifiers have its 1,000 classes in the order of
  their WordNet ids, such as n01440764, by which its folders are named.

  Args:
    num_classes: number of the network's classes.
    data: names of the data set's classes, by index.
    network_source: description of the network for the error message.
    data_source: description of the data set for the error message.

  Raises:
    UserError: the network does not have 1,000 classes, or these are not the data set's names.
  """
  are_ids = all(_WORDNET_ID.fullmatch(name) for name in data) and len(set(data)) == len(data)
  if num_classes == len(data) == _IMAGENET_CLASSES and are_ids:
    names = tuple(sorted(data))
    indices = {name: index for index, name in enumerate(names)}
    return Matching(
      names,
      tuple(indices[name] for name in data),
      "1,000 WordNet ids, whose sorted order is that of the released classifiers",
    )
  raise UserError(
    f"{network_source} has {format_count(num_classes, 'class')} without names, and {data_source} "
    f"has {format_count(len(data), 'class')} ({_shown(data)}), which are not ImageNet's 1,000 "
    "WordNet ids; give the names in the order of the classifier: --class_names_file=FILE"
  )


def read_names_file(path: str, num_classes: int) -> tuple[str, ...]:
  """Reads the names of a network's classes from a text file, one per line, in the network's order.

  Args:
    path: path of the file.
    num_classes: width of the classifier.

  Raises:
    UserError: the file cannot be read, is not UTF-8, or does not have as many names.
  """
  source = f"class names {path!r}"
  try:
    text = read_regular_file(path, _NAMES_FILE_BYTES_MAX).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{source} are not UTF-8: {error.reason} at byte {error.start}") from error
  except OSError as error:
    raise UserError(f"{source} cannot be read: {error.strerror}") from error
  names = tuple(name for line in text.splitlines() if (name := line.strip()))
  if len(names) != num_classes:
    raise UserError(
      f"{source} are {format_count(len(names), 'name')}, one per line, but the classifier has "
      f"{format_count(num_classes, 'class')}"
    )
  return names


def read_class_names(
  metadata: dict | None, num_classes: int, *, source: str
) -> tuple[str, ...] | None:
  """Returns the names of a network's classes, by index.

  Args:
    metadata: metadata of a checkpoint; None for other files.
    num_classes: width of the classifier.
    source: description of the file for the error message.

  Returns:
    The names; None if the file does not name its classes.

  Raises:
    UserError: there are not as many names as classes.
  """
  names = None if metadata is None else metadata.get("class_names")
  if names is None:
    return None
  if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
    raise UserError(f"{source}: class_names in its metadata are not a list of names")
  if len(names) != num_classes:
    raise UserError(
      f"{source}: its metadata names {format_count(len(names), 'class')}, but its "
      f"classifier has {num_classes}"
    )
  return tuple(names)


def _shown(names: Sequence[str]) -> str:
  """Returns the first few names, safe to print."""
  shown = [quoted(name) for name in names[:_NAMES_SHOWN]]
  return ", ".join(shown + ["..."] * (len(names) > _NAMES_SHOWN)) or "none"
