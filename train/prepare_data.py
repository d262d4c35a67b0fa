"""Turns images into a data set that training reads.

    python -m train.prepare_data --source=SOURCE --out=DIR
    python -m train.prepare_data --verify=DIR

A source folder of images holds `train/CLASS/*` and `val/CLASS/*` (also `validation` or `test`), or
only `CLASS/*`, a share of which is held out. Other formats are listed under `--source` below and
described in `docs/data_sources.md`. The command says what it has understood before it reads the
images, and refuses what could be meant in two ways. JPEG, PNG and WebP files are stored unchanged,
after each has been decoded once as a check. The same command continues a run that was stopped, and
refuses to write over a finished data set.
"""

import os
from collections.abc import Mapping

from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError, escaped, format_count
from nfnet.system.paths import define_path
from train.data import dataset_writer, image_sources
from train.data.manifest import (
  IMAGES_IN_TWO_SPLITS_NAME,
  MANIFEST_NAME,
  REPEATED_IMAGES_NAME,
  Manifest,
  load_manifest,
)
from train.data.preparation import class_folders
from train.data.preparation.file_tree import examples
from train.data.preparation.image_sizes import ImageSizes, describe_histogram
from train.report.table import format_table
from train.report.units import format_size

_SOURCE = define_path(
  "source",
  None,
  "What holds the images: a folder of class folders, of images with a table of labels (CSV), of "
  "MNIST's idx files, of ImageNet's archives, of a tar file for each class, of WebDataset shards, "
  "of parquet files, or of a version in TensorFlow Datasets (ArrayRecord); CIFAR's binary version; "
  "or a Python function that yields examples, as MODULE:FUNCTION or PATH.py:FUNCTION.",
  use="read",
)
_OUT = define_path("out", None, "Folder to write the data set to.", use="write folder")
_EVALUATION_SHARE = flags.DEFINE_float(
  "evaluation_share", 0.1, "Share of the images that is held out, if the source does not say which."
)
_CLASS_NAMES = flags.DEFINE_list(
  "class_names", [], "Names of the classes of idx files, separated by commas."
)
_LAYOUT = flags.DEFINE_enum(
  "layout", "auto", class_folders.LAYOUTS, "What the folders in the source are; auto finds out."
)
_MERGE_SUBFOLDERS = flags.DEFINE_bool(
  "merge_subfolders", False, "Take images in subfolders of a class folder as images of the class."
)
_FORMAT = flags.DEFINE_enum(
  "format", "auto", image_sources.FORMATS, "Kind of the source; auto finds out."
)
_LABELS = define_path(
  "labels", None, "Table (CSV) of the images' classes, if it is not labels.csv.", use="read"
)
_IMAGE_FIELD = flags.DEFINE_string(
  "image_field", None, "Column or extension of the images, if several might be meant."
)
_LABEL_FIELD = flags.DEFINE_string(
  "label_field", None, "Column, or field of JSON, with the classes, if several might be meant."
)
_SHARDS = flags.DEFINE_integer(
  "shards", None, "Record files per split; about 256 MiB each by default.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the order in which records are stored.")
_WORKERS = flags.DEFINE_integer(
  "workers", os.cpu_count(), "Number of processes that read and decode images.", lower_bound=0
)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
  "skip_bad_images", False, "Leave out images that cannot be read or decoded, and list them."
)
_VERIFY = define_path(
  "verify",
  None,
  "Folder of a data set to compare with its manifest; nothing is written.",
  use="read",
)


def main(arguments: list[str]) -> None:
  """Writes a data set or verifies one, as the flags say."""
  if len(arguments) > 1:
    raise UserError(f"unexpected argument {arguments[1]!r}: every value needs its --flag=")
  if _VERIFY.value:
    manifest = load_manifest(_VERIFY.value)
    dataset_writer.verify_with_progress(_VERIFY.value, manifest)
    _print_summary(_VERIFY.value, manifest)
    return
  if not _SOURCE.value or not _OUT.value:
    raise UserError("--source=DIR and --out=DIR are needed, or --verify=DIR")
  source = image_sources.read_source(
    _SOURCE.value,
    _EVALUATION_SHARE.value,
    _CLASS_NAMES.value,
    source_format=_FORMAT.value,
    layout=_LAYOUT.value,
    labels=_LABELS.value,
    image_field=_IMAGE_FIELD.value,
    label_field=_LABEL_FIELD.value,
    merge_subfolders=_MERGE_SUBFOLDERS.value,
    excluded=_OUT.value,
  )
  print(f"{_SOURCE.value}: {image_sources.describe_source(source)}", flush=True)
  manifest = dataset_writer.write_dataset(
    _OUT.value,
    source,
    files_per_split=_SHARDS.value,
    seed=_SEED.value,
    workers=_WORKERS.value,
    skip_bad_images=_SKIP_BAD_IMAGES.value,
  )
  _print_summary(_OUT.value, manifest)
  if manifest.skipped_images and (
    lost := image_sources.describe_classes_left_out(source, manifest.skipped_images)
  ):
    print(lost)


def _print_summary(folder: str, manifest: Manifest) -> None:
  print(f"{folder}: {format_count(len(manifest.class_names), 'class')}, verified")
  for name, split in manifest.splits.items():
    print(
      f"  {escaped(name)}: {format_count(split.records, 'image')}, "
      f"{format_size(split.size_bytes)}, {format_count(len(split.record_files), 'file')}"
    )
  if manifest.image_sizes:
    _print_image_sizes(manifest.image_sizes)
  if manifest.skipped_images:
    print(
      f"  left out because they cannot be read or decoded: "
      f"{format_count(len(manifest.skipped_images), 'image')}; see {MANIFEST_NAME}: "
      f"{examples(manifest.skipped_images)}"
    )
  if manifest.repeated_images:
    classes = manifest.repeated_in_other_classes
    print(
      f"  {format_count(manifest.repeated_images, 'image')} with the same pixels as another image "
      f"of the split, {classes or 'none'} of them with other labels; see {REPEATED_IMAGES_NAME}"
    )
  if manifest.images_in_two_splits:
    print(
      f"  {format_count(manifest.images_in_two_splits, 'image')} with the same pixels as an image "
      f"of another split; see {IMAGES_IN_TWO_SPLITS_NAME}; unless scores may count images that "
      "were trained on, remove what is listed there from the source"
    )


def _print_image_sizes(sizes_by_split: Mapping[str, ImageSizes]) -> None:
  header = ("", "smallest", "5 %", "25 %", "median", "75 %", "95 %", "largest")
  rows = []
  for split, sizes in sizes_by_split.items():
    rows.append((f"{split}: shorter side", *map(str, sizes.shorter_side)))
    rows.append((f"{split}: longer side", *map(str, sizes.longer_side)))
    rows.append((f"{split}: pixels", *(f"{one:,}" for one in sizes.pixels)))
  print(format_table(rows, header))
  for split, sizes in sizes_by_split.items():
    print(f"  {escaped(split)}, shorter side in pixels: {describe_histogram(sizes)}")


if __name__ == "__main__":
  run_main(main, prints_result=False)
