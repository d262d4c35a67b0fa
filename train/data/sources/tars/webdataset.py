"""WebDataset shards as a source: tar files in which an image lies beside a file with its label.

Files of one name are a sample: `00017.jpg` with `00017.cls` (a number or a name), `00017.json` (an
object that has the label in a field) or `00017.txt` (the class's name). If there are several, .cls
comes before .json and .json before .txt. Shards are those of a folder or a pattern; a word of their
path, as in `train-{000..127}.tar`, tells the split.
"""

import collections
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from nfnet.errors import UserError, format_count, quoted, short_text, shortened
from nfnet.foreign_files.json_text import parse_json
from nfnet.foreign_files.regular_files import open_regular
from train.data.preparation.class_folders import SPLIT_NAMES, WORDS
from train.data.preparation.file_tree import IMAGE_SUFFIXES, examples, is_of_the_system
from train.data.sources.images import Container
from train.data.sources.labeling import Labeled, make_source, without_unlabeled_splits
from train.data.sources.shard_files import find_files, splits_of_files
from train.data.sources.source import Options, Source
from train.data.sources.tars.class_tars import (
  LABEL_SUFFIX,
  Left,
  damaged,
  image_in_file,
  members_of,
  progress_bar,
)
from train.data.sources.tars.tar_files import Member

_LABEL_SUFFIXES = (LABEL_SUFFIX, ".json", ".txt")
_LABEL_FIELDS = ("label", "labels", "cls", "class", "class_name", "category")
_LABEL_BYTES_MAX = 2**20
# Of a shard, enough to see what a sample consists of.
_MEMBERS_LOOKED_AT = 200
_NEGATIVE = re.compile(r"-\d{1,9}")


class _NoLabel(str):
  """A reason why an image has no label, where nothing is damaged."""


def has_labels(root: str, names: Sequence[str]) -> bool:
  """Returns whether tar files have files with labels beside their images.

  The first file of each split is read, so that test images without labels do not matter.

  Args:
    root: folder of the files.
    names: paths of the files below it.

  Raises:
    UserError: one is not a tar file.
    OSError: one cannot be read.
  """
  return bool(_label_suffixes(root, names))


def read_webdataset(source: str, options: Options) -> Source:
  """Lists the images of shards, and reads the labels beside them.

  Args:
    source: a folder of tar files, a pattern, or one tar file.
    options: what the user says; `label_field` is a field of the .json files, `image_field` the
      extension of the images if a sample has several.

  Raises:
    UserError: there are no shards or no labels, or a shard is not a tar file.
    OSError: a file cannot be read.
  """
  root, names = find_files(source, ".tar", options.excluded)
  splits = splits_of_files(names, source)
  found = _label_suffixes(root, names)
  if options.label_field is not None and ".json" in found:
    found = {".json"}
  suffix = next((one for one in _LABEL_SUFFIXES if one in found), None)
  if suffix is None:
    raise UserError(
      f"{os.path.join(root, names[0])} has no {', '.join(_LABEL_SUFFIXES)} beside its images, so "
      "nothing tells the classes"
    )
  if options.label_field is not None and suffix != ".json":
    raise UserError(
      f"--label_field={shortened(options.label_field)} is a field of .json files, and {source} has "
      f"its labels in {suffix} files: leave out the flag"
    )
  reader = _Reader(source, suffix, options)
  images = []
  containers = [Container.of(os.path.join(root, name)) for name in names]
  with progress_bar(sum(one.size_bytes for one in containers)) as bar:
    for name, container in zip(names, containers, strict=True):
      images += reader.read_shard(name, splits[name], container)
      bar.update(container.size_bytes)
  reader.refuse_missing_suffix()
  if suffix == ".txt":
    _refuse_captions(images, source)
  how = f"{format_count(len(names), 'WebDataset shard')}; labels are those in the {suffix} files"
  images, unlabeled = without_unlabeled_splits(images)
  notes = (*reader.notes(), *unlabeled)
  return make_source(images, options, how=how, where=source, notes=notes)


class _Reader:
  """Reads shards, and counts what is left out."""

  def __init__(self, source: str, label_suffix: str, options: Options):
    self._source = source
    self._label_suffix = label_suffix
    self._label_field = options.label_field
    self._image_suffix = None
    if options.image_field is not None:
      self._image_suffix = f".{options.image_field.lower().removeprefix('.')}"
    self._left = Left([])
    self._without_image = 0
    self._numbers: dict[int, str] = {}
    self._image_suffixes: set[str] = set()

  def notes(self) -> Iterator[str]:
    """Yields sentences about what was left out."""
    if self._without_image:
      yield f"left out: {format_count(self._without_image, 'sample')} without an image"
    yield from self._left.notes()

  def read_shard(self, name: str, split: str, container: Container) -> Iterator[Labeled]:
    """Yields the images of a shard."""
    images: dict[str, list[Member]] = {}
    labels: dict[str, tuple | str] = {}
    with open_regular(container.path) as file:
      for member in members_of(file, container.path):
        if not member.name:
          yield damaged(name, member, container, split)
          continue
        key, suffix = _key_and_suffix(member.name)
        if suffix == self._image_suffix or suffix.endswith(IMAGE_SUFFIXES):
          self._image_suffixes.add(suffix)
        if is_of_the_system(os.path.basename(member.name)):
          self._left.others.append(f"{name}/{member.name}")
        elif suffix == self._label_suffix:
          problem = f"it has two files {suffix}" if key in labels else member.problem
          labels[key] = problem or self._read_label(file, member)
        elif self._is_image(suffix):
          images.setdefault(key, []).append(member)
        elif suffix not in _LABEL_SUFFIXES:
          self._left.others.append(f"{name}/{member.name}")
    for key, members in images.items():
      label = labels.pop(key, _NoLabel(f"it has no file {self._label_suffix}"))
      others = {member.name for member in members}
      for member in members:
        problem = member.problem or (label if isinstance(label, str) else "")
        if len(others) > 1:
          problem = "its sample has several images: give --image_field= the extension of one"
        member = member._replace(problem=problem)
        make = functools.partial(image_in_file, f"{name}/{member.unique_name}", member, container)
        yield Labeled(
          split,
          () if problem or isinstance(label, str) else label,
          make,
          is_unlabeled=isinstance(problem, _NoLabel),
        )
    self._without_image += len(labels)

  def refuse_missing_suffix(self) -> None:
    """Raises UserError if no sample has the image that the user names."""
    if self._image_suffix and self._image_suffix not in self._image_suffixes:
      raise UserError(
        f"{self._source} has no file {shortened(self._image_suffix)} in any sample: give "
        f"--image_field= one of {examples(sorted(self._image_suffixes)) or 'its images'}"
      )

  def _is_image(self, suffix: str) -> bool:
    return suffix == self._image_suffix if self._image_suffix else suffix in IMAGE_SUFFIXES

  def _read_label(self, file: BinaryIO, member: Member) -> tuple | str:
    """Returns the labels in a file, or what is wrong with it."""
    if member.size_bytes > _LABEL_BYTES_MAX:
      return f"its {self._label_suffix} has {member.size_bytes:,} bytes"
    file.seek(member.offset)
    content = file.read(member.size_bytes)
    try:
      if self._label_suffix == ".json":
        return self._labels_in_json(content)
      text = content.decode("utf-8-sig").strip()
    except ValueError as error:
      return f"its {self._label_suffix} is damaged ({short_text(error)})"
    if not text or (self._label_suffix == LABEL_SUFFIX and _NEGATIVE.fullmatch(text)):
      return _NoLabel(f"its {self._label_suffix} has no label, but {quoted(text)}")
    if self._label_suffix == ".cls" and text.isascii() and text.isdecimal() and len(text) < 10:
      number = int(text)
      if (known := self._numbers.setdefault(number, text)) != text:
        raise UserError(
          f"{self._source} has the labels {quoted(known)} and {quoted(text)}, which are one "
          "number: write it in one way"
        )
      return (number,)
    return (text,)

  def _labels_in_json(self, content: bytes) -> tuple | str:
    fields = parse_json(content)
    if not isinstance(fields, dict):
      return "its .json is not an object"
    if self._label_field is None:
      # All samples have the field that the first one has.
      self._label_field = next((name for name in _LABEL_FIELDS if name in fields), None)
      if self._label_field is None:
        raise UserError(
          f"a .json of the source has the fields {quoted(list(fields))} and none named "
          f"{', '.join(_LABEL_FIELDS)}: give --label_field= one of them"
        )
    return _labels_of_value(fields.get(self._label_field), self._label_field)


def _labels_of_value(value: Any, field: str) -> tuple | str:
  """Returns the labels in a field, one or a list, or what is wrong with it."""
  value = _whole(value)
  if value is None or value in ("", []) or (type(value) is int and value < 0):
    return _NoLabel(f"its .json has no label in the field {quoted(field)}, but {quoted(value)}")
  values = list(map(_whole, value)) if isinstance(value, list) else [value]
  if values and all(type(one) is int or (type(one) is str and one) for one in values):
    return tuple(values)
  return (
    f"its .json has {quoted(value)} in the field {quoted(field)}, must be a whole number or a name"
  )


def _whole(value: Any) -> Any:
  """Returns 3 for 3.0, which pandas writes if one of the labels is missing."""
  return int(value) if type(value) is float and value.is_integer() else value


def _label_suffixes(root: str, names: Sequence[str]) -> set[str]:
  """Returns the endings of the files with labels that lie beside images."""
  firsts: dict[frozenset[str], str] = {}
  for name in names:
    words = (SPLIT_NAMES.get(word.lower()) for word in WORDS.findall(name))
    firsts.setdefault(frozenset(filter(None, words)), name)
  return set().union(
    *(_label_suffixes_of_shard(os.path.join(root, name)) for name in firsts.values())
  )


def _label_suffixes_of_shard(path: str) -> set[str]:
  suffixes: dict[str, set[str]] = collections.defaultdict(set)
  found: set[str] = set()
  with open_regular(path) as file:
    for count, member in enumerate(members_of(file, path), start=1):
      key, suffix = _key_and_suffix(member.name)
      if suffix in IMAGE_SUFFIXES or suffix in _LABEL_SUFFIXES:
        of_sample = suffixes[key]
        of_sample.add(suffix)
        if any(one in IMAGE_SUFFIXES for one in of_sample):
          found |= of_sample & set(_LABEL_SUFFIXES)
      # The images may come first, all of them.
      if found and count >= _MEMBERS_LOOKED_AT:
        break
  return found


def _key_and_suffix(name: str) -> tuple[str, str]:
  """Returns what the files of a sample have in common, and the rest, as WebDataset divides them."""
  path = pathlib.PurePosixPath(name)
  stem, dot, rest = path.name.partition(".")
  return f"{path.parent}/{stem}", (dot + rest).lower()


def _refuse_captions(images: list[Labeled], source: str) -> None:
  """Refuses texts of which most images have their own."""
  texts = {image.labels for image in images if image.labels}
  if len(texts) > max(10, len(images) // 2):
    raise UserError(
      f"{source}: the .txt files of {format_count(len(images), 'image')} hold {len(texts):,} "
      "different texts: they are captions, not classes"
    )
