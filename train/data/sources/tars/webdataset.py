"""WebDataset shards as a source: tar files in which an image lies beside a file with its label.

Files of one name are a sample: `00017.jpg` with `00017.cls` (a number or a name), `00017.json` (an
object that has the label in a field) or `00017.txt` (the class's name). If there are several, .cls
comes before .json and .json before .txt. Shards are those of a folder or a pattern; a word of their
path, as in `train-{000..127}.tar`, tells the split.
"""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from nfnet.errors import UserError, format_count, quoted, short_text
from nfnet.foreign_files.json_text import parse_json
from nfnet.foreign_files.regular_files import open_regular
from train.data.preparation.file_tree import IMAGE_SUFFIXES, is_of_the_system
from train.data.sources.images import Container
from train.data.sources.labeling import Labeled, make_source
from train.data.sources.shard_files import find_files, splits_of_files
from train.data.sources.source import Options, Source
from train.data.sources.tars.class_tars import (
  Left,
  damaged,
  image_in_file,
  members_of,
  progress_bar,
)
from train.data.sources.tars.tar_files import Member

_LABEL_SUFFIXES = (".cls", ".json", ".txt")
_LABEL_FIELDS = ("label", "labels", "cls", "class", "class_name", "category")
_LABEL_BYTES_MAX = 2**20
# Of the first shard, enough to see what a sample consists of.
_MEMBERS_LOOKED_AT = 200


def has_labels(path: str) -> bool:
  """Returns whether a tar file has files with labels beside its images.

  Raises:
    UserError: it is no tar file.
    OSError: it cannot be read.
  """
  return bool(_label_suffixes(path))


def read_webdataset(source: str, options: Options) -> Source:
  """Lists the images of shards, and reads the labels beside them.

  Args:
    source: a folder of tar files, a pattern, or one tar file.
    options: what the user says; `label_field` is a field of the .json files, `image_field` the
      extension of the images if a sample has several.

  Raises:
    UserError: there are no shards or no labels, or a shard is no tar file.
    OSError: a file cannot be read.
  """
  root, names = find_files(source, ".tar", options.excluded)
  splits = splits_of_files(names, source)
  found = _label_suffixes(os.path.join(root, names[0]))
  if options.label_field is not None and ".json" in found:
    found = {".json"}
  suffix = next((one for one in _LABEL_SUFFIXES if one in found), None)
  if suffix is None:
    raise UserError(
      f"{os.path.join(root, names[0])} has no {', '.join(_LABEL_SUFFIXES)} beside its images, so "
      "nothing tells the classes"
    )
  reader = _Reader(suffix, options)
  images = []
  containers = [Container.of(os.path.join(root, name)) for name in names]
  with progress_bar(sum(one.size_bytes for one in containers)) as bar:
    for name, container in zip(names, containers, strict=True):
      images += reader.read_shard(name, splits[name], container)
      bar.update(container.size_bytes)
  if suffix == ".txt":
    _refuse_captions(images, source)
  how = f"{format_count(len(names), 'WebDataset shard')}; labels are those in the {suffix} files"
  return make_source(images, options, how=how, where=source, notes=tuple(reader.notes()))


class _Reader:
  """Reads shards, and counts what is left out."""

  def __init__(self, label_suffix: str, options: Options):
    self._label_suffix = label_suffix
    self._label_field = options.label_field
    self._image_suffix = None
    if options.image_field is not None:
      self._image_suffix = f".{options.image_field.lower().removeprefix('.')}"
    self._left = Left([])
    self._without_image = 0

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
      label = labels.pop(key, f"it has no file {self._label_suffix}")
      others = {member.name for member in members}
      for member in members:
        problem = member.problem or (label if isinstance(label, str) else "")
        if len(others) > 1:
          problem = "its sample has several images: give --image_field= the extension of one"
        member = member._replace(problem=problem)
        make = functools.partial(image_in_file, f"{name}/{member.unique_name}", member, container)
        yield Labeled(split, () if problem or isinstance(label, str) else label, make)
    self._without_image += len(labels)

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
    if not text:
      return f"its {self._label_suffix} is empty"
    if self._label_suffix == ".cls" and text.isascii() and text.isdecimal() and len(text) < 10:
      return (int(text),)
    return (text,)

  def _labels_in_json(self, content: bytes) -> tuple | str:
    fields = parse_json(content)
    if not isinstance(fields, dict):
      return "its .json is no object"
    if self._label_field is None:
      # All samples have the field that the first one has.
      self._label_field = next((name for name in _LABEL_FIELDS if name in fields), None)
      if self._label_field is None:
        raise UserError(
          f"a .json of the source has the fields {quoted(list(fields))} and none named "
          f"{', '.join(_LABEL_FIELDS)}: give --label_field= one of them"
        )
    return labels_of_value(fields.get(self._label_field)) or (
      f"its .json has no label in the field {quoted(self._label_field)}"
    )


def labels_of_value(value: Any) -> tuple:
  """Returns the labels that a value of a file is, one or a list; none if it is no label."""
  values = value if isinstance(value, list) else [value]
  is_label = all(type(one) is int or (type(one) is str and one) for one in values)
  return tuple(values) if is_label else ()


def _label_suffixes(path: str) -> set[str]:
  images, labels = set(), set()
  with open_regular(path) as file:
    for member in itertools.islice(members_of(file, path), _MEMBERS_LOOKED_AT):
      key, suffix = _key_and_suffix(member.name)
      if suffix in IMAGE_SUFFIXES:
        images.add(key)
      elif suffix in _LABEL_SUFFIXES:
        labels.add((key, suffix))
  return {suffix for key, suffix in labels if key in images}


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
