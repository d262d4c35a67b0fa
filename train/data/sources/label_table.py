"""A folder of images with a table of their labels as a source.

The table is a CSV file, `labels.csv` in the folder or another one, whose first line names the
columns. One holds the image (`file`, `image`, `path`, ...: a path below the folder, or a name that
only one image there has, with or without its extension), one the class (`label`, `class`, ...),
with `|` between several, and perhaps one the split (`split`: train, val or test).
"""

import collections
import csv
import functools
import io
import os
import pathlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nfnet.errors import UserError, format_count, quoted, short_text, shortened
from nfnet.foreign_files.regular_files import open_regular
from nfnet.weights.class_names import composed
from train.data.preparation import file_tree
from train.data.preparation.class_folders import SPLIT_NAMES, TRAIN
from train.data.sources.folders import image_file, notes_of_tree
from train.data.sources.images import ImageFile
from train.data.sources.labeling import Labeled, make_source, without_unlabeled_splits
from train.data.sources.source import Options, Source

TABLE_NAMES = ("labels.csv", "labels.tsv")
SEPARATOR = "|"

_IMAGE_COLUMNS = frozenset(
  (
    *("file", "filename", "file_name", "filepath", "file_path", "image", "image_name"),
    *("image_path", "image_id", "imageid", "path"),
  )
)
# Kaggle's table of ImageNet's validation images has the class and a rectangle in one column.
_PREDICTION = "predictionstring"
_LABEL_COLUMNS = frozenset(("label", "labels", "class", "class_name", "category", _PREDICTION))
_SPLIT_COLUMNS = frozenset(("split", "set", "subset"))
_DELIMITERS = ",;\t"


class Row(NamedTuple):
  """A line of a table.

  Attributes:
    line: number of the line in the file.
    image: name of the image.
    labels: names of its classes; none if the field is empty.
    split: "train", "validation" or "test"; None if the table has no such column.
  """

  line: int
  image: str
  labels: tuple[str, ...]
  split: str | None


def find_table(root: str) -> str | None:
  """Returns the path of a folder's table, if it has one.

  Raises:
    UserError: it has two.
  """
  found = [name for name in TABLE_NAMES if os.path.lexists(os.path.join(root, name))]
  if len(found) > 1:
    raise UserError(f"{root} has {' and '.join(found)}: give --labels= one of them")
  return os.path.join(root, found[0]) if found else None


def read_table(root: str, options: Options) -> Source:
  """Lists the images that a table names; none is opened.

  Args:
    root: path of the folder, or of a table in the folder.
    options: what the user says.

  Raises:
    UserError: there is no table, or it cannot be understood.
    OSError: a folder cannot be read.
  """
  table = options.labels
  if os.path.isfile(root):
    if table is not None:
      raise UserError(f"--source={root} is a table, so give no --labels, or a folder as --source")
    table, root = root, os.path.dirname(root) or "."
  table = table or find_table(root)
  if table is None:
    raise UserError(f"{root} has no {TABLE_NAMES[0]}: give --labels=FILE.csv")
  tree = file_tree.read_tree(root, options.excluded, table)
  files = _Files(tree, root)
  rows = list(read_rows(table, options))
  if not rows:
    raise UserError(f"{table} has no line below its columns: give one line for each image")
  labels = {label for row in rows for label in row.labels}
  # With --class_names, whole numbers that are not names are indices.
  to_label = (
    int
    if options.class_names
    and not labels & set(options.class_names)
    and all(label.isascii() and label.isdecimal() for label in labels)
    else str
  )
  images = []
  lines: dict[str, int] = {}
  for row in rows:
    file, problem = files.find(row, table)
    name = file.name if file else row.image
    if name in lines:
      raise UserError(
        f"{table} names {quoted(name)} twice, in lines {lines[name]} and {row.line}: give all "
        f"labels of an image in one line, separated by {SEPARATOR}"
      )
    lines[name] = row.line
    if not row.labels:
      problem = problem or f"line {row.line} of {table} has no label for it"
    images.append(
      Labeled(
        row.split or TRAIN,
        () if problem else tuple(map(to_label, row.labels)),
        functools.partial(_image, name, file, problem, root),
        is_unlabeled=file is not None and not row.labels,
      )
    )
  notes = list(notes_of_tree(tree))
  if left_out := [name for name in files.names() if name not in lines]:
    count = format_count(len(left_out), "image")
    notes.append(f"left out: {count} that the table does not name: {file_tree.examples(left_out)}")
  images, unlabeled = without_unlabeled_splits(images)
  return make_source(
    images,
    options,
    how=f"labels are those of {table}",
    where=table,
    notes=(*notes, *unlabeled),
  )


def read_rows(table: str, options: Options) -> Iterator[Row]:
  """Yields the lines of a table below its first one.

  Args:
    table: path of the file.
    options: names of columns, if the user gives them.

  Raises:
    UserError: the file cannot be read, or has no columns that are known.
  """
  try:
    with open_regular(table) as opened:
      text = io.TextIOWrapper(opened, encoding="utf-8-sig", newline="")
      header_line, lines_before = text.readline(), 1
      while header_line.isspace():
        header_line, lines_before = text.readline(), lines_before + 1
      if not header_line:
        raise UserError(f"{table} is empty: its first line names the columns, such as file,label")
      delimiter = max(_DELIMITERS, key=header_line.count)
      # A space before a quotation mark is not part of a name.
      form = {"delimiter": delimiter, "strict": True, "skipinitialspace": True}
      header = next(csv.reader([header_line], **form), [])
      columns = [name.strip().lower() for name in header]
      image = _column(columns, _IMAGE_COLUMNS, options.image_field, "image", table)
      label = _column(columns, _LABEL_COLUMNS, options.label_field, "label", table)
      splits = [index for index, name in enumerate(columns) if name in _SPLIT_COLUMNS]
      reader = csv.reader(text, **form)
      for fields in reader:
        line = reader.line_num + lines_before
        if not any(map(str.strip, fields)):
          continue
        if len(fields) != len(columns):
          raise UserError(
            f"{table}, line {line}: {format_count(len(fields), 'field')} where the first line has "
            f"{len(columns)}: put names with {delimiter!r} between quotation marks"
          )
        name = fields[image].strip()
        if not name:
          raise UserError(f"{table}, line {line}: the column {columns[image]} is empty")
        value = fields[label].strip()
        labels = value.split()[:1] if columns[label] == _PREDICTION else value.split(SEPARATOR)
        split = _split(fields[splits[0]], table, line) if splits else None
        yield Row(line, name, tuple(one.strip() for one in labels if one.strip()), split)
  except OSError as error:
    raise UserError(f"{table} cannot be read: {error.strerror or error}") from error
  except (UnicodeError, csv.Error) as error:
    raise UserError(
      f"{table} is not a CSV file in UTF-8: {short_text(error)}; save it as CSV in UTF-8"
    ) from error


def _column(
  columns: Sequence[str], known: frozenset[str], given: str | None, what: str, table: str
) -> int:
  wanted = known if given is None else {given.strip().lower()}
  found = [index for index, name in enumerate(columns) if name in wanted]
  if len(found) != 1:
    names = f"named {shortened(given)}" if given else f"of the {what}s"
    hint = "" if found else ", or put a line with the columns' names first, such as file,label"
    raise UserError(
      f"{table} has {'no column' if not found else f'{len(found)} columns'} {names} in its first "
      f"line, {shortened(','.join(columns))}: give --{what}_field= one of them{hint}"
    )
  return found[0]


def _split(text: str, table: str, line: int) -> str:
  split = SPLIT_NAMES.get(text.strip().lower())
  if split is None:
    raise UserError(
      f"{table}, line {line}: {quoted(text)} is not a split; take train, validation or test"
    )
  return split


class _Files:
  """Finds the image of a tree that a line means."""

  def __init__(self, tree: file_tree.Tree, root: str):
    files = [file for folder in tree.root.walk() for file in folder.images]
    self._root = os.path.abspath(root) + os.sep
    self._names = sorted(file.name for file in files)
    # Names in a table are often composed where those of files are not, or the other way round.
    self._by_name: dict[str, list[file_tree.File]] = collections.defaultdict(list)
    self._by_part: dict[str, list[file_tree.File]] = collections.defaultdict(list)
    for file in files:
      name = composed(file.name)
      self._by_name[name].append(file)
      path = pathlib.PurePosixPath(name)
      for part in {path.name, path.stem, str(path.with_suffix(""))} - {name}:
        self._by_part[part].append(file)

  def names(self) -> list[str]:
    """Returns the names of all images."""
    return self._names

  def find(self, row: Row, table: str) -> tuple[file_tree.File | None, str]:
    """Returns the image, or None and why there is none."""
    # Tables that were written on Windows have paths with backslashes.
    for name in (row.image, row.image.replace("\\", "/")):
      name = composed(posixpath.normpath(name).removeprefix(self._root))
      found = self._by_name.get(name) or self._by_part.get(name, ())
      found = [file for file in found if file.name == row.image] or found
      if len(found) > 1:
        raise UserError(
          f"{table}, line {row.line}: {quoted(row.image)} may be {found[0].name} or "
          f"{found[1].name}: give the path below the folder"
        )
      if found:
        return found[0], ""
    return None, f"line {row.line} of {table} names it, and it is not in the folder"


def _image(
  name: str, file: file_tree.File | None, problem: str, root: str, labels: tuple[int, ...]
) -> ImageFile:
  if file and not problem:
    return image_file(file, labels, root)
  return ImageFile(name, labels, root, 0, 0, problem)
