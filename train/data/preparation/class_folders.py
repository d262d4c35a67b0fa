"""Understands folders of images as splits and classes, and refuses what could be read in two ways.

    train/CLASS/IMAGE, val/CLASS/IMAGE       "splits": also training, valid, validation, test
    CLASS/IMAGE                              "classes": a share is held out

Nothing is opened: names and the kinds of files decide.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from nfnet.errors import UserError, format_count
from nfnet.images.decoding import IMAGE_SUFFIXES
from nfnet.system.paths import REFUSED_CATEGORIES
from nfnet.weights.class_names import composed
from train.data.preparation.file_tree import File, Folder, examples

TRAIN, VALIDATION, TEST = "train", "validation", "test"
LAYOUTS = ("auto", "splits", "classes")

SPLIT_NAMES = {
  "train": TRAIN,
  "training": TRAIN,
  "val": VALIDATION,
  "valid": VALIDATION,
  "validation": VALIDATION,
  "test": TEST,
  "testing": TEST,
}
# Marks that change the direction of what follows.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Joiners, direction marks, byte order marks and so on.
_UNSEEN_CATEGORY = "Cf"
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_CHOOSE_LAYOUT = (
  "give --layout=classes if these folders are classes, or --layout=splits if they are splits"
)


@dataclasses.dataclass(frozen=True)
class ClassFolders:
  """Files by split and class.

  Attributes:
    how: how the folders were understood.
    class_names: names of the classes, sorted.
    splits: for each split, pairs of a file and its class index.
    notes: sentences about what was left out or is missing.
  """

  how: str
  class_names: tuple[str, ...]
  splits: dict[str, list[tuple[File, int]]]
  notes: tuple[str, ...]


def read_class_folders(
  root: Folder, source: str, layout: str = "auto", merge_subfolders: bool = False
) -> ClassFolders:
  """Finds splits and classes.

  Args:
    root: folder that holds splits or classes.
    source: name of the folder in messages.
    layout: one of `LAYOUTS`: what the folders in the root are; "auto" finds out.
    merge_subfolders: whether images in subfolders of a class folder belong to the class.

  Raises:
    UserError: the folders can be understood in two ways or in none; the message says what to do.
  """
  notes: list[str] = []
  _refuse_dangling_links(root, source)
  if layout == "auto":
    layout = _find_layout(root, source)
  split_folders = _find_splits(root, source, notes) if layout == "splits" else {TRAIN: root}
  class_names: tuple[str, ...] = ()
  splits = {}
  for split, folder in split_folders.items():
    where = f"{source}/{folder.name}" if folder.name else source
    _check_level_of_classes(folder, where, notes)
    if split == TRAIN:
      class_names = _class_names(folder, where)
    splits[split] = _labeled_files(
      folder, class_names, where, split_folders[TRAIN].name or source, merge_subfolders
    )
  if len(class_names) < 2:
    raise UserError(
      f"{source} has only one class folder, {examples(class_names)}, and a classifier needs two: "
      "a class is a folder of its images; if a table tells the classes, name it labels.csv or give "
      "--labels=FILE.csv; labels in the files' names are not read"
    )
  if layout == "splits":
    how = "splits are the folders " + ", ".join(
      f"{folder.name} ({split})" for split, folder in split_folders.items()
    )
  else:
    how = f"classes are the folders in {source}"
  return ClassFolders(how, class_names, splits, tuple(notes))


def _find_layout(root: Folder, source: str) -> str:
  with_images = [folder for folder in root.folders if folder.has_images()]
  roles = {folder.name: SPLIT_NAMES.get(folder.name.lower()) for folder in with_images}
  if any(roles.values()):
    others = [name for name, role in roles.items() if not role]
    known = [name for name, role in roles.items() if role]
    if others:
      raise UserError(
        f"{source} has folders named as splits ({examples(known)}) beside others with images "
        f"({examples(others)}): {_CHOOSE_LAYOUT}"
      )
    if TRAIN not in roles.values():
      raise UserError(
        f"{source} has folders named as splits ({examples(known)}) and none named train: "
        f"{_CHOOSE_LAYOUT}"
      )
    for folder in with_images:
      if roles[folder.name] == TRAIN and not any(inner.has_images() for inner in folder.folders):
        name = folder.name
        raise UserError(
          f"{source}/{name} has no class folders for its "
          f"{format_count(len(folder.images), 'image')}: expected "
          f"{source}/{name}/CLASS/IMAGE, or --layout=classes if {examples(known)} are classes"
        )
    return "splits"
  # Folders such as train2017 and val2017, or training_set and test_set.
  words = [{SPLIT_NAMES.get(word.lower()) for word in WORDS.findall(name)} for name in roles]
  found = set().union(*words) - {None}
  if len(found) > 1 and TRAIN in found and all(roles - {None} for roles in words):
    raise UserError(
      f"the names of the folders in {source} look like splits ({examples(list(roles))}): rename "
      "them to train, val and test, or give --layout=classes if they are classes"
    )
  return "classes"


def _find_splits(root: Folder, source: str, notes: list[str]) -> dict[str, Folder]:
  by_role = collections.defaultdict(list)
  others = []
  for folder in root.folders:
    if role := SPLIT_NAMES.get(folder.name.lower()):
      by_role[role].append(folder)
    else:
      others.append(folder.name)
  for folders in by_role.values():
    if len(folders) > 1:
      first, second = (folder.name for folder in folders[:2])
      raise UserError(f"{source} has both {first} and {second}: remove or rename one of them")
  if root.images:
    _note_loose_images(root, source, notes)
  if others:
    notes.append(f"left out: folders that are not splits: {examples(others)}")
  if TRAIN not in by_role:
    raise UserError(f"{source} has no folder named train")
  found = {role: folders[0] for role, folders in by_role.items()}
  if TEST in found and not any(folder.has_images() for folder in found[TEST].folders):
    test = found.pop(TEST)
    notes.append(
      f"left out: {test.name}: {format_count(len(test.images), 'image')} in no class folder"
    )
  if VALIDATION not in found and TEST in found:
    found[VALIDATION] = found.pop(TEST)
  return {split: found[split] for split in (TRAIN, VALIDATION, TEST) if split in found}


def _refuse_dangling_links(folder: Folder, where: str) -> None:
  """Refuses links that may have led to splits or classes."""
  if folder.dangling_links:
    raise UserError(
      f"{where} has links that lead nowhere ({examples(folder.dangling_links)}), perhaps to "
      "folders of images: repair or remove them"
    )


def _check_level_of_classes(folder: Folder, where: str, notes: list[str]) -> None:
  """Refuses a folder of class folders that has none, or a link that may have been one."""
  _refuse_dangling_links(folder, where)
  if not folder.folders:
    images = f" for its {format_count(len(folder.images), 'image')}" if folder.images else ""
    raise UserError(
      f"{where} has no class folders{images}: expected {where}/CLASS/IMAGE, or a table of "
      "the labels, labels.csv"
    )
  if folder.images:
    _note_loose_images(folder, where, notes)


def _note_loose_images(folder: Folder, where: str, notes: list[str]) -> None:
  names = [image.name for image in folder.images]
  count = format_count(len(names), "image")
  notes.append(f"left out: {count} of {where} in no class folder: {examples(names)}")


def _class_names(folder: Folder, where: str) -> tuple[str, ...]:
  names = tuple(sorted(class_folder.own_name for class_folder in folder.folders))
  check_class_names(names, where)
  return names


def check_class_names(names: Sequence[str], where: str) -> None:
  """Raises UserError unless any terminal and file can show the names, and a person can tell them.

  Args:
    names: names of classes.
    where: what has them, for the message.
  """
  by_look: dict[str, str] = {}
  for name in names:
    look = _look(name)
    if not look or any(map(_is_control, name)):
      raise UserError(
        f"{where} has a class named '{name}', which is empty, has control characters or "
        "is not UTF-8: rename it"
      )
    if look in by_look:
      difference = (
        ""
        if by_look[look] == name
        else ", which differ only in spaces, unseen characters or how Unicode composes letters"
      )
      raise UserError(f"{where} has two classes named '{name}'{difference}: rename one of them")
    by_look[look] = name


def _look(name: str) -> str:
  """Returns what can be seen of a name."""
  seen = "".join(one for one in name if unicodedata.category(one) != _UNSEEN_CATEGORY)
  return composed(" ".join(seen.split()))


def _is_control(character: str) -> bool:
  # str.isprintable() refuses the joiners and spaces that names in Persian, Hindi or French need.
  return unicodedata.category(character) in REFUSED_CATEGORIES or character in _DIRECTIONS


def _labeled_files(
  folder: Folder, class_names: Sequence[str], where: str, train: str, merge_subfolders: bool
) -> list[tuple[File, int]]:
  labels = {composed(name): label for label, name in enumerate(class_names)}
  files = []
  for class_folder in folder.folders:
    name = f"{where}/{class_folder.own_name}"
    if not class_folder.has_images():
      raise UserError(
        f"class folder {name} has no image ({', '.join(IMAGE_SUFFIXES)}): remove it or move it away"
      )
    label = labels.get(composed(class_folder.own_name))
    if label is None:
      raise UserError(
        f"class folder '{name}' has no counterpart in {train}: rename it or move it away"
      )
    inner = [inner for inner in class_folder.folders if inner.has_images()]
    if inner and not merge_subfolders:
      raise _nested(class_folder, inner, name, where)
    for each in class_folder.walk() if merge_subfolders else (class_folder,):
      files += ((file, label) for file in each.images)
  return sorted(files, key=lambda pair: pair[0].name)


def _nested(class_folder: Folder, inner: Sequence[Folder], name: str, where: str) -> UserError:
  names = examples([folder.own_name for folder in inner])
  if any(folder.own_name.lower() in SPLIT_NAMES for folder in inner):
    hint = (
      f"splits come first: {where}/train/{class_folder.own_name}, or --source={name} if "
      "that is the data set"
    )
  else:
    hint = (
      f"if these are classes, give --source={name}, or move all class folders into one folder; if "
      "their images all belong to the class, give --merge_subfolders"
    )
  return UserError(f"class folder {name} has subfolders with images ({names}): {hint}")
