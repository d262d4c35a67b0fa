"""Finds the files that a source consists of: by a pattern, in a folder, or one file; by split.

A pattern has braces: `train-{000000..001023}.tar` for numbers, `{train,val}.tar` for words.
"""

import os
import re
from collections.abc import Sequence

from nfnet.errors import UserError, format_count
from train.data.preparation import file_tree
from train.data.preparation.class_folders import SPLIT_NAMES, TRAIN, WORDS

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_FILES_MAX = 2**20
COMPRESSED_SUFFIXES = (
  *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
"""Endings of the names of compressed tar files."""


def is_pattern(source: str) -> bool:
  """Returns whether a source is a pattern rather than the path of a file."""
  return bool(_BRACES.search(source)) and not os.path.lexists(source)


def expand_braces(pattern: str) -> list[str]:
  """Returns the paths that a pattern stands for, in order.

  Raises:
    UserError: braces hold neither a range of numbers nor words, or there are too many paths.
  """
  paths = [pattern]
  while found := _BRACES.search(paths[0]):
    if numbers := _RANGE.fullmatch(found[1]):
      first, last = int(numbers[1]), int(numbers[2])
      if not 0 <= last - first < _FILES_MAX:
        raise UserError(f"{pattern}: {{{found[1]}}} is not a range of numbers")
      parts = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    elif "," in found[1]:
      parts = found[1].split(",")
    else:
      raise UserError(f"{pattern}: write {{000..123}} for numbers, or {{train,val}} for words")
    if len(parts) * len(paths) > _FILES_MAX:
      raise UserError(f"{pattern} stands for more than {_FILES_MAX:,} files")
    paths = [_BRACES.sub(lambda _, p=part: p, path, count=1) for path in paths for part in parts]
  return paths


def find_files(source: str, suffix: str, excluded: str | None = None) -> tuple[str, list[str]]:
  """Returns a folder and the names of the files below it, sorted.

  Args:
    source: a pattern, a folder or a file.
    suffix: how the files' names end, such as ".tar".
    excluded: path of a folder that is not read.

  Raises:
    UserError: there is no such file, or files of a pattern are missing.
    OSError: a folder cannot be read.
  """
  if is_pattern(source):
    paths = expand_braces(source)
    if missing := [path for path in paths if not os.path.isfile(path)]:
      raise UserError(
        f"{source}: {format_count(len(missing), 'file')} of {len(paths):,} not found, such as "
        f"{missing[0]}"
      )
  elif os.path.isfile(source):
    paths = [source]
  else:
    names = [os.path.relpath(path, source) for path in _walk(source, excluded)]
    found = [name for name in names if name.lower().endswith(suffix)]
    if suffix == ".tar":
      _refuse_compressed(names, source)
    if not found:
      raise UserError(f"{source} has no file {suffix}")
    return source, found
  root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
  return root, [os.path.relpath(os.path.abspath(path), root) for path in paths]


def is_compressed_tar(name: str) -> bool:
  """Returns whether a file's name is that of a compressed tar file."""
  return name.lower().endswith(COMPRESSED_SUFFIXES)


def _refuse_compressed(names: Sequence[str], source: str) -> None:
  """Refuses compressed tar files, unless the same is there uncompressed."""
  there = {name[: -len(".tar")] for name in names if name.lower().endswith(".tar")}
  compressed = [
    name
    for name in names
    if is_compressed_tar(name) and re.sub(r"(?i)(\.tar)?\.\w+$", "", name) not in there
  ]
  if compressed:
    raise UserError(
      f"{source} has compressed tar files ({file_tree.examples(compressed)}), in which nothing can "
      "be found: decompress them, for example with gzip -d"
    )


def splits_of_files(names: Sequence[str], where: str) -> dict[str, str]:
  """Returns the split of each file, which a word of its path tells, such as `train-000.tar`.

  Args:
    names: paths below the source.
    where: the source, for messages.

  Raises:
    UserError: only some files tell their split, or one tells two, or none is for training.
  """
  splits: dict[str, str] = {}
  for name in names:
    found = {SPLIT_NAMES.get(word.lower()) for word in WORDS.findall(name)} - {None}
    if len(found) > 1:
      raise UserError(
        f"{where}: {name} may be of the splits {' and '.join(sorted(found))}: rename it"
      )
    if found:
      splits[name] = found.pop()
  if not splits:
    return dict.fromkeys(names, TRAIN)
  if others := [name for name in names if name not in splits]:
    raise UserError(
      f"{where} has files named as splits ({file_tree.examples(list(splits))}) beside others "
      f"({file_tree.examples(others)}): rename them, or give a pattern as --source"
    )
  if TRAIN not in splits.values():
    first = next(iter(splits.values()))
    if len(set(splits.values())) == 1 and len(names) == 1:
      return dict.fromkeys(names, TRAIN)
    raise UserError(f"{where} has files named {first} and none named train: rename them")
  return splits


def _walk(root: str, excluded: str | None) -> list[str]:
  """Returns the paths of all files below a folder, sorted; links to folders are followed."""
  left_out = None if excluded is None else os.path.realpath(excluded)
  found: list[str] = []
  seen: set[tuple[int, int]] = set()

  def fail(error: OSError) -> None:
    raise error

  for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
    status = os.stat(folder)
    if (place := (status.st_dev, status.st_ino)) in seen:
      # A link leads to a folder that has been listed, perhaps to one above.
      folders.clear()
      continue
    seen.add(place)
    folders[:] = sorted(
      name
      for name in folders
      if not file_tree.is_of_the_system(name)
      and os.path.realpath(os.path.join(folder, name)) != left_out
    )
    found += (os.path.join(folder, name) for name in files if not file_tree.is_of_the_system(name))
  return sorted(found)
