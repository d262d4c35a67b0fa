"""Data sets of TensorFlow Datasets in ArrayRecord files as a source, without TensorFlow.

The folder, such as `imagenet2012/5.1.0`, holds `dataset_info.json`, `features.json`, for the names
of classes `label.labels.txt`, and files such as `imagenet2012-train.array_record-00000-of-01024`,
whose records are `tf.train.Example`s.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nfnet.errors import UserError, quoted, short_text, shortened
from nfnet.foreign_files.json_text import read_json
from nfnet.foreign_files.regular_files import read_regular_file
from nfnet.images.headers import ENCODED_BYTES_MAX, BadImageError
from train.data.manifest import RecordFile
from train.data.preparation.class_folders import SPLIT_NAMES
from train.data.preparation.file_tree import examples
from train.data.record_files import open_record_file
from train.data.sources.images import Container
from train.data.sources.labeling import Labeled, make_source, without_unlabeled_splits
from train.data.sources.source import Options, Source, SourceImage, UnreadableImageError
from train.data.sources.tars.class_tars import progress_bar
from train.data.sources.tf_example import read_example

INFO_NAME = "dataset_info.json"
FEATURES_NAME = "features.json"
_FORMAT = "array_record"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_INFO_STRUCTURE = {
  "name?": str,
  "fileFormat?": str,
  "splits": [{"name": str, "shardLengths?": [Any], "filepathTemplate?": str}],
}
_LABELS_BYTES_MAX = 16 * 2**20
_RECORDS_PER_READ = 64
_READERS_OPEN_MAX = 16


class _Shard(NamedTuple):
  split: str
  file: str
  records: int


@dataclasses.dataclass(frozen=True, slots=True)
class TfdsImage(SourceImage):
  """An image in an example of a record file.

  Attributes:
    name: the file and the record in it.
    labels: class indices.
    container: the file.
    records: number of records in the file.
    index: index of the record.
    feature: name of the feature with the image's bytes.
    size_bytes: number of these bytes.
    problem: why it cannot be read or has no label; empty otherwise.
  """

  name: str
  labels: tuple[int, ...]
  container: Container
  records: int
  index: int
  feature: str
  size_bytes: int
  problem: str = ""

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    place = f"{self.container.fingerprint()} {self.index} {self.feature} {self.size_bytes}"
    return os.fsencode(f"{self.name} {self.labels} {place}{self.problem}")

  def read(self) -> bytes:
    """Returns the bytes of the image.

    Raises:
      UnreadableImageError: the record is damaged or has no image.
      BadImageError: it is too large.
    """
    if self.problem:
      raise UnreadableImageError(self.problem)
    if self.size_bytes > ENCODED_BYTES_MAX:
      raise BadImageError(f"has more than {ENCODED_BYTES_MAX:,} bytes: make the image smaller")
    reader = _open(self.container, self.records)
    example = _read_records(reader, self.index, self.index + 1)[0]
    image = _image_in(example, self.feature)
    if isinstance(example, str) or not image:
      raise UnreadableImageError(example if isinstance(example, str) else "it has no image")
    return image


def is_tfds(root: str) -> bool:
  """Returns whether a folder is that of a version of a data set."""
  return all(os.path.isfile(os.path.join(root, name)) for name in (INFO_NAME, FEATURES_NAME))


def find_tfds(root: str) -> list[str]:
  """Returns the folders of versions in a folder that is above them, as `imagenet2012` is."""
  found = []
  for folder, folders, _ in os.walk(root):
    if is_tfds(folder):
      found.append(folder)
    # NAME/CONFIGURATION/VERSION
    if folder.removeprefix(root).count(os.sep) >= 3:
      folders.clear()
  return sorted(found)


def read_tfds(root: str, options: Options) -> Source:
  """Lists the examples; each record is read once for its labels.

  Args:
    root: folder of a version of a data set.
    options: what the user says; `image_field` and `label_field` are features.

  Raises:
    UserError: files are missing or damaged, or it is not clear which features to take.
    OSError: a file cannot be read.
  """
  if not is_tfds(root):
    found = find_tfds(root)
    hint = f": give --source={found[0]}" if found else ""
    raise UserError(f"{root} has no {INFO_NAME} and {FEATURES_NAME}{hint}")
  info_path = os.path.join(root, INFO_NAME)
  info = read_json(info_path, _INFO_STRUCTURE)
  file_format = info.get("fileFormat", "tfrecord").lower()
  if file_format != _FORMAT:
    raise UserError(
      f"{root} has files of the format {shortened(file_format)}, of which only {_FORMAT} is read: "
      f"have TensorFlow Datasets write it (tfds convert_format --out_file_format={_FORMAT})"
    )
  features = _features(os.path.join(root, FEATURES_NAME))
  image = _choose(features, "image", options.image_field, root)
  label = _choose(features, "label", options.label_field, root)
  shards, notes = _shards(info, info_path)
  containers = {shard: Container.of(os.path.join(root, shard.file)) for shard in shards}
  images: list[Labeled] = []
  with progress_bar(sum(one.size_bytes for one in containers.values())) as bar:
    for shard, container in containers.items():
      images += _examples(shard, container, image, label)
      bar.update(container.size_bytes)
  images, unlabeled = without_unlabeled_splits(images)
  return make_source(
    images,
    options,
    how=f"TensorFlow Datasets; images are the feature {image}, labels {label}",
    where=root,
    class_names=_class_names(root, label),
    notes=(*notes, *unlabeled),
  )


def _features(path: str) -> dict[str, str]:
  """Returns what each feature of an example is: "image", "label" or ""."""
  found: dict[str, str] = {}

  def visit(feature: Any, name: str, depth: int) -> None:
    if not isinstance(feature, dict) or depth > 8:
      return
    inner = feature.get("featuresDict")
    if isinstance(inner, dict) and isinstance(inner.get("features"), dict):
      for key, one in inner["features"].items():
        visit(one, f"{name}/{key}" if name else key, depth + 1)
      return
    sequence = feature.get("sequence")
    if isinstance(sequence, dict) and isinstance(sequence.get("feature"), dict):
      is_label = "classLabel" in sequence["feature"]
      found[name] = "label" if is_label else ""
      return
    found[name] = "image" if "image" in feature else "label" if "classLabel" in feature else ""

  visit(read_json(path, dict), "", 0)
  return found


def _choose(features: Mapping[str, str], what: str, given: str | None, root: str) -> str:
  if given is not None:
    if given not in features:
      raise UserError(
        f"{root} has no feature {shortened(given)}; it has {shortened(', '.join(features))}"
      )
    return given
  found = [name for name, kind in features.items() if kind == what]
  if len(found) != 1:
    names = shortened(", ".join(found or features))
    raise UserError(
      f"{root} has {len(found)} features that are {what}s: of {names}, give --{what}_field= one"
    )
  return found[0]


def _class_names(root: str, label: str) -> tuple[str, ...]:
  path = os.path.join(root, f"{label.replace('/', '-')}.labels.txt")
  if not os.path.isfile(path):
    return ()
  try:
    lines = read_regular_file(path, _LABELS_BYTES_MAX).decode().split("\n")
  except UnicodeError as error:
    raise UserError(f"{path} is damaged: {short_text(error)}") from error
  return tuple(line.strip() for line in lines if line.strip())


def _shards(info: Mapping[str, Any], path: str) -> tuple[list[_Shard], list[str]]:
  """Returns the files of the splits that are known, and a note on the others."""
  shards = []
  others = []
  for fields in info["splits"]:
    split = SPLIT_NAMES.get(fields["name"].lower())
    if split is None:
      others.append(fields["name"])
      continue
    try:
      # Integers of 64 bits are strings in the JSON of protocol buffers.
      lengths = [int(length) for length in fields.get("shardLengths", ())]
    except (TypeError, ValueError) as error:
      raise UserError(f"{path} is damaged: shardLengths of {shortened(fields['name'])}") from error
    template = fields.get("filepathTemplate") or _TEMPLATE
    for index, records in enumerate(lengths):
      values = {
        "DATASET": info.get("name", ""),
        "SPLIT": fields["name"],
        "FILEFORMAT": _FORMAT,
        "SHARD_INDEX": f"{index:05d}",
        "NUM_SHARDS": f"{len(lengths):05d}",
        "SHARD_X_OF_Y": f"{index:05d}-of-{len(lengths):05d}",
      }
      file = template
      for key, value in values.items():
        file = file.replace(f"{{{key}}}", value)
      if not file or os.path.basename(file) != file or file in (".", ".."):
        raise UserError(f"{path}: {quoted(file)} is not the name of a file beside it")
      if records > 0:
        shards.append(_Shard(split, file, records))
  if not shards:
    raise UserError(f"{path} has no examples in a split train, validation or test")
  notes = [f"left out: splits of other names: {examples(others)}"] if others else []
  return shards, notes


def _examples(shard: _Shard, container: Container, image: str, label: str) -> Iterator[Labeled]:
  reader = _open(container, shard.records)
  for start in range(0, shard.records, _RECORDS_PER_READ):
    stop = min(start + _RECORDS_PER_READ, shard.records)
    for index, example in enumerate(_read_records(reader, start, stop), start=start):
      labels: tuple[int, ...] = ()
      size_bytes = 0
      is_unlabeled = False
      if isinstance(example, str):
        problem = example
      else:
        found = example.get(label, [])
        is_label = bool(found) and all(type(one) is int and one >= 0 for one in found)
        labels = tuple(found) if is_label else ()  # type: ignore[arg-type]
        size_bytes = len(_image_in(example, image) or b"")
        problem = "" if labels else "it has no label"
        problem = problem if size_bytes else "it has no image"
        is_unlabeled = size_bytes > 0 and not labels
      name = f"{shard.file}/{index:07d}"
      make = functools.partial(
        _image, name, container, shard.records, index, image, size_bytes, problem
      )
      yield Labeled(shard.split, () if problem else labels, make, is_unlabeled)


def _image(name, container, records, index, feature, size_bytes, problem, labels):
  return TfdsImage(name, labels, container, records, index, feature, size_bytes, problem)


def _image_in(example: Any, feature: str) -> bytes | None:
  values = example.get(feature) if isinstance(example, dict) else None
  if values and len(values) == 1 and isinstance(values[0], bytes):
    return values[0]
  return None


@functools.lru_cache(maxsize=_READERS_OPEN_MAX)
def _open(container: Container, records: int) -> Any:
  """Opens a record file; raises UserError if it is damaged or has another number of records."""
  folder, file = os.path.split(container.path)
  described = RecordFile(file=file, records=records, size_bytes=container.size_bytes, sha256="")
  return open_record_file(folder, described)


def _read_records(reader: Any, start: int, stop: int) -> list[dict[str, Any] | str]:
  """Returns the examples of some records, or for each that is damaged, how."""
  try:
    stored = reader.read(start, stop)
  # The reader raises RuntimeError, ValueError or IndexError, depending on the damage.
  except Exception as error:
    if stop - start == 1:
      return [f"its record is damaged ({short_text(error)})"]
    return [_read_records(reader, index, index + 1)[0] for index in range(start, stop)]
  found: list[dict[str, Any] | str] = []
  for record in stored:
    try:
      found.append(read_example(record))
    except ValueError as error:
      found.append(f"its record is not a tf.train.Example ({short_text(error)})")
  return found
