"""Hugging Face's parquet files as a source: a column of images and one of labels.

The metadata that `datasets` writes say which columns these are and name the classes. Other parquet
files need one column with the bytes of images, or a struct that has them as `bytes`, and one with
whole numbers, names, or lists of these. A word of a file's path, as in
`train-00000-of-00294.parquet`, tells the split.

A row group is read as a whole, so its images are stored one after the other.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from nfnet.errors import UserError, format_count, quoted, short_text, shortened
from nfnet.foreign_files.known_starts import known_mistake
from nfnet.foreign_files.regular_files import open_regular
from nfnet.images.headers import ENCODED_BYTES_MAX, BadImageError
from train.data.sources.images import Container
from train.data.sources.labeling import Labeled, make_source, without_unlabeled_splits
from train.data.sources.shard_files import find_files, splits_of_files
from train.data.sources.source import Options, Source, SourceImage, UnreadableImageError
from train.data.sources.tars.class_tars import progress_bar
from train.report.units import format_size

_ROWS_PER_BATCH = 64
_GROUP_BYTES_NOTED = 2**30
_LABEL_NAMES = ("label", "labels", "class", "class_name", "category")


@dataclasses.dataclass(frozen=True, slots=True)
class _Columns:
  """The columns that make examples.

  Attributes:
    image: name of the column with the images.
    is_struct: whether its bytes are the field `bytes` of a struct.
    label: name of the column with the labels; empty in a file that has no labels.
    class_names: names of the classes, if the metadata has them.
  """

  image: str
  is_struct: bool
  label: str
  class_names: tuple[str, ...]

  @property
  def image_path(self) -> str:
    """Path of the bytes in the schema."""
    return f"{self.image}.bytes" if self.is_struct else self.image


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetImage(SourceImage):
  """An image in a row of a parquet file.

  Attributes:
    name: the file and the row in it.
    labels: class indices.
    container: the file.
    columns: where the bytes are.
    row_group: index of the row group.
    row: index of the row in the row group.
    size_bytes: mean length of the images of the row group.
    group: the file and the row group.
    problem: why it has no label; empty if it has one.
  """

  name: str
  labels: tuple[int, ...]
  container: Container
  columns: _Columns
  row_group: int
  row: int
  size_bytes: int
  group: str
  problem: str = ""

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    place = f"{self.container.fingerprint()} {self.columns.image_path} {self.row_group} {self.row}"
    return os.fsencode(f"{self.name} {self.labels} {place}{self.problem}")

  def read(self) -> bytes:
    """Returns the bytes of the image.

    Raises:
      UnreadableImageError: there are none, or the row group is damaged.
      BadImageError: it is too large.
      OSError: the file cannot be read.
    """
    if self.problem:
      raise UnreadableImageError(self.problem)
    value = _images(self.container, self.columns, self.row_group)[self.row].as_py()
    image = value.get("bytes") if isinstance(value, dict) else value
    if not image:
      raise UnreadableImageError("the row has no bytes of an image")
    if len(image) > ENCODED_BYTES_MAX:
      raise BadImageError(f"has more than {ENCODED_BYTES_MAX:,} bytes: make the image smaller")
    return image


def read_parquet(source: str, options: Options) -> Source:
  """Lists the rows of parquet files; of the columns, only the labels are read.

  Args:
    source: a folder of parquet files, a pattern, or one file.
    options: what the user says; `image_field` and `label_field` are columns.

  Raises:
    UserError: pyarrow is not installed, a file is damaged, or columns cannot be told.
    OSError: a file cannot be read.
  """
  root, names = find_files(source, ".parquet", options.excluded)
  splits = splits_of_files(names, source)
  images: list[Labeled] = []
  columns = None
  group_bytes = 0
  containers = [Container.of(os.path.join(root, name)) for name in names]
  with progress_bar(sum(container.size_bytes for container in containers)) as bar:
    for name, container in zip(names, containers, strict=True):
      with _open(container.path) as file:
        has_labels = _has_labels(file.schema_arrow, options)
        found = _find_columns(file.schema_arrow, options, container.path, has_labels)
        columns = columns or found
        # The files before this one may be without labels.
        if not columns.label:
          columns = dataclasses.replace(columns, label=found.label, class_names=found.class_names)
        if found not in (columns, dataclasses.replace(columns, label="", class_names=())):
          raise UserError(
            f"{container.path} has other columns or classes than {names[0]}: give the files of one "
            "data set"
          )
        images += _rows(file, name, splits[name], container, found)
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        group_bytes = max([group_bytes, *(_image_bytes(group, columns) for group in groups)])
      bar.update(container.size_bytes)
  assert columns is not None
  if not columns.label:
    # Says why the first file has none.
    with _open(containers[0].path) as file:
      _find_columns(file.schema_arrow, options, containers[0].path, has_labels=True)
  images, notes = without_unlabeled_splits(images)
  if group_bytes > _GROUP_BYTES_NOTED:
    notes.append(
      f"note: row groups have up to {format_size(group_bytes)} of images, and each of the "
      "--workers keeps one in memory"
    )
  how = (
    f"{format_count(len(names), 'parquet file')}; images are in the column {columns.image}, labels "
    f"in {columns.label}"
  )
  return make_source(
    images, options, how=how, where=source, class_names=columns.class_names, notes=notes
  )


def _rows(
  file: Any, name: str, split: str, container: Container, columns: _Columns
) -> Iterator[Labeled]:
  row_in_file = 0
  for row_group in range(file.num_row_groups):
    metadata = file.metadata.row_group(row_group)
    size_bytes = _image_bytes(metadata, columns) // max(1, metadata.num_rows)
    labels = [None] * metadata.num_rows
    if columns.label:
      labels = _read_column(file, row_group, columns.label, container.path).to_pylist()
    for row, value in enumerate(labels):
      label = _labels(value)
      yield Labeled(
        split,
        label,
        functools.partial(
          _image,
          f"{name}/{row_in_file + row:07d}",
          container,
          columns,
          row_group,
          row,
          size_bytes,
          f"{name}/{row_group}",
          "" if label else f"it has no label, but {quoted(value)}",
        ),
        is_unlabeled=not label,
      )
    row_in_file += metadata.num_rows


def _image_bytes(row_group: Any, columns: _Columns) -> int:
  """Returns the size of all images of a row group, which is given by its metadata."""
  each = (row_group.column(index) for index in range(row_group.num_columns))
  return sum(
    one.total_uncompressed_size for one in each if one.path_in_schema == columns.image_path
  )


def _image(name, container, columns, row_group, row, size_bytes, group, problem, labels):
  return ParquetImage(name, labels, container, columns, row_group, row, size_bytes, group, problem)


def _labels(value: Any) -> tuple:
  """Returns the labels in a field; Hugging Face writes -1 where there is none."""
  values = value if isinstance(value, list) else [value]
  values = [int(one) if type(one) is bool else one for one in values]
  if all((type(one) is int and one >= 0) or (type(one) is str and one) for one in values):
    return tuple(values)
  return ()


def _has_labels(schema: Any, options: Options) -> bool:
  """Returns whether a file has a column that may be of the labels and is not of the type null."""
  types, _, labels = _label_columns(schema, options)
  return not all(_pyarrow().types.is_null(types[label]) for label in labels)


def _label_columns(
  schema: Any, options: Options
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
  """Returns types of columns, what metadata say of them, and those that may be of the labels."""
  types = {field.name: field.type for field in schema}
  features = _features(schema.metadata or {})
  if options.label_field is not None:
    return types, features, [name for name in types if name == options.label_field]
  labels = [name for name in features if name in types and _class_names(features[name]) is not None]
  return types, features, labels or [name for name in types if name.lower() in _LABEL_NAMES]


def _find_columns(schema: Any, options: Options, path: str, has_labels: bool) -> _Columns:
  types, features, labels = _label_columns(schema, options)
  images = [name for name, one in features.items() if one.get("_type") == "Image"]
  images = [name for name in images if name in types]
  if not images:
    images = [name for name, one in types.items() if _is_image(one)]
  image = _choose(images, options.image_field, types, "image", path)
  if not _is_image(types[image]):
    raise UserError(
      f"{path}: the column {shortened(image)} has the type {shortened(str(types[image]))}, must be "
      "bytes: give --image_field= another one"
    )
  if not has_labels:
    return _Columns(image, _is_struct(types[image]), "", ())
  label = _choose(labels, options.label_field, types, "label", path)
  if not _is_label(types[label]):
    raise UserError(
      f"{path}: the column {shortened(label)} has the type {shortened(str(types[label]))}, must be "
      "whole numbers or names: give --label_field= another one"
    )
  names = _class_names(features.get(label, {})) or ()
  if _is_bool(types[label]):
    names = options.class_names or ("False", "True")
  return _Columns(image, _is_struct(types[image]), label, tuple(names))


def _choose(
  found: list[str], given: str | None, types: Mapping[str, Any], what: str, path: str
) -> str:
  if given is not None:
    found = [name for name in types if name == given]
  if len(found) == 1:
    return found[0]
  if given is not None:
    raise UserError(
      f"{path} has no column {shortened(given)}; it has {shortened(', '.join(types))}"
    )
  found_text = f"{len(found)} columns" if found else "no column"
  columns = shortened(", ".join(found or types))
  raise UserError(
    f"{path} has {found_text} of {what}s that can be told: of {columns}, give --{what}_field= one"
  )


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
  """Returns the features that `datasets` has written; none if it has not written the file."""
  try:
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
  except (KeyError, ValueError, TypeError, RecursionError):
    return {}
  if not isinstance(features, dict):
    return {}
  return {
    name: {"feature": one[0]} if isinstance(one, list) and one else one
    for name, one in features.items()
    if isinstance(one, dict | list)
  }


def _class_names(feature: Any) -> list[str] | None:
  """Returns the names of a class label or a list of class labels; None for another feature."""
  while isinstance(feature, dict):
    if feature.get("_type") == "ClassLabel":
      names = feature.get("names") or []
      return names if isinstance(names, list) and all(type(one) is str for one in names) else []
    feature = feature.get("feature")
  return None


def _is_struct(kind: Any) -> bool:
  return _pyarrow().types.is_struct(kind)


def _is_image(kind: Any) -> bool:
  types = _pyarrow().types
  if types.is_struct(kind):
    index = kind.get_field_index("bytes")
    return index >= 0 and _is_image(kind.field(index).type)
  return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_label(kind: Any) -> bool:
  types = _pyarrow().types
  if types.is_list(kind) or types.is_large_list(kind):
    return _is_label(kind.value_type)
  if types.is_dictionary(kind):
    return _is_label(kind.value_type)
  is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
  return is_text or types.is_integer(kind) or types.is_boolean(kind)


def _is_bool(kind: Any) -> bool:
  types = _pyarrow().types
  while types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
    kind = kind.value_type
  return types.is_boolean(kind)


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      "parquet files are read by pyarrow, which is not installed: pip install pyarrow"
    ) from error
  return pyarrow


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
  pyarrow = _pyarrow()
  with open_regular(path) as opened:
    try:
      file = pyarrow.parquet.ParquetFile(opened)
    except (pyarrow.ArrowException, OSError) as error:
      if isinstance(error, OSError) and error.errno is not None:
        raise
      raise UserError(
        f"{path} is damaged or no parquet file ({short_text(error)}): get it again"
        if (mistake := known_mistake(path)) is None
        else f"{path} is {mistake}"
      ) from error
    yield file


def _read_column(file: Any, row_group: int, column: str, path: str) -> Any:
  """Returns a column of a row group, in pieces: as one, bytes beyond 2 GiB could not be read.

  Raises:
    UserError: it is damaged.
    OSError: it cannot be read.
  """
  try:
    batches = file.iter_batches(
      _ROWS_PER_BATCH, row_groups=[row_group], columns=[column], use_threads=False
    )
    pieces = [batch.column(0) for batch in batches]
    return _pyarrow().chunked_array(pieces) if pieces else _pyarrow().array([])
  except (_pyarrow().ArrowException, OSError) as error:
    # Of damaged data, pyarrow raises OSError without a number.
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise UserError(
      f"{path}: row group {row_group} is damaged ({short_text(error)}): get the file again"
    ) from error


@functools.lru_cache(maxsize=1)
def _images(container: Container, columns: _Columns, row_group: int) -> Any:
  """Returns the images of a row group; for most calls, it is the one of the call before."""
  try:
    with _open(container.path) as file:
      return _read_column(file, row_group, columns.image_path, container.path)
  except UserError as error:
    raise UnreadableImageError(str(error)) from error
