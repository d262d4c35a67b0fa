"""ImageNet-1k as it is distributed as a source; nothing is unpacked.

    ILSVRC2012_img_train.tar           one tar file for each class, or a folder train/CLASS/*
    ILSVRC2012_img_val.tar             all images, or a folder val/*
    ILSVRC2012_devkit_t12.tar.gz       classes of the validation images, or its folder
    LOC_val_solution.csv               the same, as Kaggle has it

Classes are WordNet ids in alphabetical order. The images' names are those of class folders, so the
data set is the one that the unpacked and sorted images make.
"""

import functools
import io
import os
import tarfile
from collections.abc import Iterator, Mapping

import numpy as np
import scipy.io

from nfnet.errors import UserError, format_count, quoted, short_text
from nfnet.foreign_files.regular_files import open_regular, read_regular_file
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.preparation.file_tree import IMAGE_SUFFIXES, File, Folder, read_tree
from train.data.sources.folders import image_file
from train.data.sources.images import Container, ImageFile
from train.data.sources.label_table import read_rows
from train.data.sources.labeling import Labeled, make_source, unusable
from train.data.sources.source import Options, Source
from train.data.sources.tars.class_tars import (
  Left,
  damaged,
  image_in_file,
  images_of_tars,
  members_of,
  nested_images,
  progress_bar,
)

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12"
_SOLUTION = "LOC_val_solution.csv"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_VALIDATION_FOLDERS = ("val", "validation", "ILSVRC2012_img_val")
# The devkit's own have 0.6 and 0.2 MB.
_DEVKIT_FILE_BYTES_MAX = 64 * 2**20


def is_imagenet(root: str) -> bool:
  """Returns whether a path is one of ImageNet's tar files, or a folder with one or the images."""
  if os.path.basename(root) in (TRAIN_TAR, VALIDATION_TAR):
    return True
  if any(os.path.isfile(os.path.join(root, name)) for name in (TRAIN_TAR, VALIDATION_TAR)):
    return True
  return any(
    os.path.isfile(os.path.join(root, name, "ILSVRC2012_val_00000001.JPEG"))
    for name in _VALIDATION_FOLDERS
  )


def read_imagenet(root: str, options: Options) -> Source:
  """Lists ImageNet's images.

  Args:
    root: folder with the files that the module's documentation lists, or the training tar file.
    options: what the user says; `labels` is a table of the validation images.

  Raises:
    UserError: files are missing or damaged, or do not belong together.
    OSError: a file cannot be read.
  """
  if os.path.isfile(root):
    if os.path.basename(root) == VALIDATION_TAR:
      raise UserError(f"{root} has no training images: give the folder with {TRAIN_TAR} too")
    root, names = os.path.dirname(root) or ".", {os.path.basename(root)}
  else:
    names = set(os.listdir(root))
  left = Left([])
  notes: list[str] = []
  table = None
  train_tar = os.path.join(root, TRAIN_TAR)
  folder_of_train = os.path.join(root, "train")
  if TRAIN_TAR in names:
    images = list(nested_images(train_tar, "train/", TRAIN, left))
    how = f"training images are in {TRAIN_TAR}"
  elif tars := _tars_in(folder_of_train):
    splits = {os.path.join("train", name): TRAIN for name in tars}
    images = list(images_of_tars(root, splits, left, with_folders=True))
    how = "training images are in the tar files in train"
  elif os.path.isdir(folder_of_train):
    images = list(_class_folders("train", TRAIN, root, options))
    how = "training images are in train"
  else:
    raise UserError(f"{root} has neither {TRAIN_TAR} nor a folder train: add one of them")
  classes = {label for image in images for label in image.labels}
  folder = next((name for name in _VALIDATION_FOLDERS if name in names), None)
  if VALIDATION_TAR in names or folder:
    place = VALIDATION_TAR if VALIDATION_TAR in names else folder
    how += f", validation images in {place}"
    if place == folder and _has_class_folders(os.path.join(root, place)):
      images += _class_folders(place, VALIDATION, root, options)
    else:
      table = _table(root, options)
      labels, how_labeled = _validation_labels(root, table, options)
      how += f", {how_labeled}"
      if unknown := sorted(set(labels.values()) - classes):
        raise UserError(
          f"{root}: validation images have {format_count(len(unknown), 'class')} that no training "
          f"image has, such as {quoted(str(unknown[0]))}: the files do not belong together"
          f"{unusable(images)}"
        )
      if place == VALIDATION_TAR:
        held_out = list(_validation_tar(os.path.join(root, place), labels, left))
      else:
        held_out = list(_validation_folder(root, place, labels, options))
      images += held_out
      absent = len(labels) - sum(bool(image.labels) for image in held_out)
      if absent > 0:
        notes.append(
          f"note: {how_labeled} are for {format_count(len(labels), 'image')}, of which {absent:,} "
          f"are not in {place}"
        )
  _refuse_options_of_no_table(table, options, root)
  return make_source(
    images, options, how=how, where=root, by_number=False, notes=(*notes, *left.notes())
  )


def _table(root: str, options: Options) -> str | None:
  """Returns the path of a table of the validation images, if there is one."""
  solution = os.path.join(root, _SOLUTION)
  return options.labels or (solution if os.path.isfile(solution) else None)


def _refuse_options_of_no_table(table: str | None, options: Options, root: str) -> None:
  """Refuses options that say where a table is, or what its columns are, if none was read."""
  for name in ("labels", "image_field", "label_field"):
    if getattr(options, name) is not None and table is None:
      raise UserError(
        f"--{name} is for a table of the validation images, and {root} is read without one: leave "
        "out the flag"
      )


def _tars_in(folder: str) -> list[str]:
  """Returns the names of the tar files in a folder, in which people unpack the one of all."""
  if not os.path.isdir(folder):
    return []
  return sorted(name for name in os.listdir(folder) if name.lower().endswith(".tar"))


def _class_folders(name: str, split: str, root: str, options: Options) -> Iterator[Labeled]:
  tree = read_tree(os.path.join(root, name), options.excluded)
  for folder in tree.root.folders:
    for file in folder.images:
      yield Labeled(
        split, (folder.name,), functools.partial(_file, file, f"{name}/{file.name}", root)
      )


def _has_class_folders(path: str) -> bool:
  return any(entry.is_dir() for entry in os.scandir(path))


def _validation_tar(path: str, labels: Mapping[str, str], left: Left) -> Iterator[Labeled]:
  container = Container.of(path)
  with open_regular(path) as file, progress_bar(container.size_bytes) as bar:
    for member in members_of(file, path):
      bar.update(member.offset - bar.n)
      if not member.name:
        yield damaged(VALIDATION_TAR, member, container, VALIDATION)
        continue
      own_name = os.path.basename(member.name)
      if not own_name.lower().endswith(IMAGE_SUFFIXES):
        left.others.append(f"{VALIDATION_TAR}/{member.name}")
        continue
      label = labels.get(_stem(own_name))
      if label is None:
        member = member._replace(problem=member.problem or "nothing tells its class")
        yield damaged(f"val/{member.unique_name}", member, container, VALIDATION)
        continue
      name = f"val/{label}/{own_name}" + member.unique_name.removeprefix(member.name)
      make = functools.partial(image_in_file, name, member, container)
      yield Labeled(VALIDATION, (label,), make)
    bar.update(container.size_bytes - bar.n)


def _validation_folder(
  root: str, folder: str, labels: Mapping[str, str], options: Options
) -> Iterator[Labeled]:
  tree = read_tree(os.path.join(root, folder), options.excluded)
  for file in _images(tree.root):
    label = labels.get(_stem(file.name))
    if label is None:
      file = File(file.name, problem="nothing tells its class")
    # An image's path is its name, so it cannot have that of class folders.
    make = functools.partial(_file, file, f"{folder}/{file.name}", root)
    yield Labeled(VALIDATION, () if label is None else (label,), make)


def _images(folder: Folder) -> Iterator[File]:
  for each in folder.walk():
    yield from each.images


def _file(file: File, name: str, root: str, labels: tuple[int, ...]) -> ImageFile:
  return image_file(File(name, file.size_bytes, file.modified_ns, file.problem), labels, root)


def _stem(name: str) -> str:
  return os.path.splitext(os.path.basename(name))[0]


def _validation_labels(
  root: str, table: str | None, options: Options
) -> tuple[dict[str, str], str]:
  """Returns the WordNet ids of validation images by name without extension, and their origin."""
  if table:
    rows = read_rows(table, options)
    return {_stem(row.image): row.labels[0] for row in rows if row.labels}, f"labels in {table}"
  for name in (_DEVKIT, f"{_DEVKIT}.tar.gz"):
    path = os.path.join(root, name)
    if os.path.exists(path):
      files = _devkit_folder(path) if os.path.isdir(path) else _devkit_tar(path)
      return _ground_truth(path, files), f"labels in {name}"
  raise UserError(
    f"{root} has the validation images without their classes: put {_DEVKIT}.tar.gz or {_SOLUTION} "
    "there, or give --labels=FILE.csv"
  )


def _devkit_folder(path: str) -> dict[str, bytes]:
  found = {}
  for name in (_META, _GROUND_TRUTH):
    for place in (os.path.join(path, "data", name), os.path.join(path, name)):
      if name not in found and os.path.isfile(place):
        found[name] = read_regular_file(place, _DEVKIT_FILE_BYTES_MAX)
  return found


def _devkit_tar(path: str) -> dict[str, bytes]:
  found = {}
  try:
    with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:*") as archive:
      while member := archive.next():
        archive.members.clear()  # type: ignore[attr-defined]
        name = os.path.basename(member.name)
        if name in (_META, _GROUND_TRUTH) and member.isreg():
          if member.size > _DEVKIT_FILE_BYTES_MAX:
            raise UserError(f"{path} has a {name} of {member.size:,} bytes: it is another file")
          content = archive.extractfile(member)
          found[name] = content.read(_DEVKIT_FILE_BYTES_MAX) if content else b""
  except (UserError, MemoryError):
    raise
  # Damaged archives raise errors of tarfile, gzip and zlib, ValueError and others.
  except Exception as error:
    raise UserError(f"{path} is damaged: {short_text(error)}; get it again") from error
  return found


def _ground_truth(path: str, files: Mapping[str, bytes]) -> dict[str, str]:
  for name in (_META, _GROUND_TRUTH):
    if name not in files:
      raise UserError(f"{path} has no {name}: get the devkit of tasks 1 and 2 again")
  try:
    synsets = scipy.io.loadmat(io.BytesIO(files[_META]), squeeze_me=True)["synsets"]
    ids = {
      int(np.asarray(number).item()): str(np.asarray(wordnet_id).item())
      for number, wordnet_id in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
    }
    numbers = [int(line) for line in files[_GROUND_TRUTH].split()]
    return {f"ILSVRC2012_val_{place:08d}": ids[n] for place, n in enumerate(numbers, start=1)}
  except MemoryError:
    raise
  # SciPy's reader raises many types of errors on damaged files.
  except Exception as error:
    raise UserError(f"{path} is damaged: {short_text(error)}; get it again") from error
