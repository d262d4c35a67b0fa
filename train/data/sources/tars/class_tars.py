"""Tar files for each class as a source, as ImageNet-21k has: `n01440764.tar` and so on.

The class is the name of the tar file. The files lie in a folder, perhaps in `train` and `val`
there, or in one tar file. The images' names are those that they would have if all were unpacked
into class folders, and the classes are in the same order, that of the alphabet, so they make the
same data set as those.
"""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import tqdm

from nfnet.errors import UserError, format_count, shortened
from nfnet.foreign_files.known_starts import known_mistake
from nfnet.foreign_files.regular_files import open_regular
from train.data.preparation.class_folders import SPLIT_NAMES, TRAIN
from train.data.preparation.file_tree import IMAGE_SUFFIXES, examples, is_of_the_system
from train.data.sources.images import Container, ImageInFile
from train.data.sources.labeling import Labeled, make_source
from train.data.sources.shard_files import find_files, is_compressed_tar
from train.data.sources.source import Options, Source
from train.data.sources.tars.tar_files import CUT_OFF, Member, read_members

LABEL_SUFFIX = ".cls"
"""Ending of the files that hold a label and nothing else, beside the images of WebDataset."""
# Listing takes a second for 30,000 images; a bar is shown after this time.
PROGRESS_DELAY_SECONDS = 1.0


class Left(NamedTuple):
  """Holds the names of what was seen in tar files and is not read.

  Attributes:
    others: names of members that are not images.
  """

  others: list[str]

  def notes(self) -> Iterator[str]:
    """Yields sentences about it."""
    if self.others:
      count = format_count(len(self.others), "member")
      yield f"ignored: {count} of tar files that are not images: {examples(self.others)}"


def read_class_tars(source: str, options: Options) -> Source:
  """Lists the images in the tar files of classes.

  Args:
    source: a folder of tar files, a pattern, or one tar file that holds others.
    options: what the user says.

  Raises:
    UserError: there are no tar files, or one is none.
    OSError: a file cannot be read.
  """
  root, names = find_files(source, ".tar", options.excluded)
  left = Left([])
  if len(names) == 1:
    path = os.path.join(root, names[0])
    images = nested_images(path, "", TRAIN, left)
    how = f"each tar file in {path} is a class"
  else:
    splits = _splits(names, source)
    images = images_of_tars(root, splits, left, with_folders=len(set(splits.values())) > 1)
    how = f"each tar file in {source} is a class"
    if len(set(splits.values())) > 1:
      how += f"; splits are the folders ({', '.join(sorted(set(splits.values())))})"
  listed = list(images)
  return make_source(
    listed, options, how=how, where=source, by_number=False, notes=tuple(left.notes())
  )


def nested_images(path: str, prefix: str, split: str, left: Left) -> Iterator[Labeled]:
  """Yields the images of a tar file that holds one tar file for each class.

  Args:
    path: path of the file.
    prefix: beginning of the images' names.
    split: split of the images.
    left: is told of what is not read.

  Raises:
    UserError: it holds no tar files, or is none.
  """
  container = Container.of(path)
  found = 0
  with (
    open_regular(path) as file,
    open_regular(path) as inner,
    progress_bar(container.size_bytes) as bar,
  ):
    for member in members_of(file, path):
      bar.update(member.offset - bar.n)
      if is_compressed_tar(member.name):
        raise UserError(
          f"{path} holds compressed tar files ({shortened(member.name)}), in which nothing can be "
          "found: unpack it and decompress them"
        )
      if member.name and not member.name.lower().endswith(".tar"):
        left.others.append(f"{os.path.basename(path)}/{member.name}")
        continue
      found += 1
      if member.problem not in ("", CUT_OFF):
        name = member.unique_name or os.path.basename(path)
        yield damaged(f"{prefix}{name}", member, container, split)
        continue
      class_name = pathlib.PurePosixPath(member.name).stem
      for one in read_members(inner, member.offset, member.size_bytes):
        yield from _image(one, class_name, prefix, split, container, left)
    bar.update(container.size_bytes - bar.n)
  if not found:
    raise UserError(
      f"{path} holds neither tar files of classes nor images with .cls, .json or .txt beside them, "
      "so nothing tells the classes: unpack it"
    )


def images_of_tars(
  root: str, splits: Mapping[str, str], left: Left, *, with_folders: bool
) -> Iterator[Labeled]:
  """Yields the images of tar files, each of which is a class.

  Args:
    root: folder of the files.
    splits: split of the images of each file, by its path below the folder.
    left: is told of what is not read.
    with_folders: whether the names of images begin with the folders of their files.

  Raises:
    UserError: a file is not a tar file, or cannot be that of a class.
  """
  containers = {name: Container.of(os.path.join(root, name)) for name in splits}
  with progress_bar(sum(one.size_bytes for one in containers.values())) as bar:
    for name, split in splits.items():
      container = containers[name]
      path = pathlib.PurePosixPath(name)
      prefix = f"{path.parent}/" if with_folders else ""
      with open_regular(container.path) as file:
        for member in members_of(file, container.path):
          yield from _image(member, path.stem, prefix, split, container, left)
      bar.update(container.size_bytes)


def members_of(file: BinaryIO, path: str) -> Iterator[Member]:
  """Yields the members of a tar file; raises UserError with its path if it is none."""
  try:
    yield from read_members(file)
  except UserError as error:
    raise UserError(f"{path}: {known_mistake(path) or error}") from error


def _splits(names: list[str], source: str) -> dict[str, str]:
  """Returns the split of each file, which its folder tells: a class may be named "test tube"."""
  folders = {name: pathlib.PurePosixPath(name).parts[:-1] for name in names}
  found = {
    name: SPLIT_NAMES.get(parts[0].lower()) if parts else None for name, parts in folders.items()
  }
  if not any(found.values()):
    return dict.fromkeys(names, TRAIN)
  if others := [name for name, split in found.items() if split is None]:
    raise UserError(
      f"{source} has tar files in folders of splits beside others ({examples(others)}): move them "
      "away"
    )
  return {name: split for name, split in found.items() if split}


def _image(
  member: Member, class_name: str, prefix: str, split: str, container: Container, left: Left
) -> Iterator[Labeled]:
  if not member.name:
    yield damaged(f"{prefix}{class_name}.tar", member, container, split)
    return
  path = pathlib.PurePosixPath(member.name)
  if is_of_the_system(path.name) or path.suffix.lower() not in IMAGE_SUFFIXES:
    if path.suffix.lower() == LABEL_SUFFIX:
      raise UserError(
        f"{container.path} has labels beside its images ({shortened(member.name)}), so it is "
        "not a tar file of a class: give --format=webdataset"
      )
    left.others.append(f"{class_name}.tar/{member.name}")
    return
  # The members of some archives lie in a folder that is named as the class.
  if path.parts[:-1] not in ((), (class_name,)):
    raise UserError(
      f"{container.path} has folders of images ({shortened(member.name)}), which may be classes, "
      f"too: unpack it, or rename it if {path.parts[-2]} is its class"
    )
  name = f"{prefix}{class_name}/{member.unique_name.removeprefix(f'{class_name}/')}"
  yield Labeled(split, (class_name,), functools.partial(image_in_file, name, member, container))


def damaged(name: str, member: Member, container: Container, split: str) -> Labeled:
  """Returns what stands for a member, or the rest of an archive, that cannot be read."""
  return Labeled(split, (), functools.partial(image_in_file, name, member, container))


def image_in_file(
  name: str, member: Member, container: Container, labels: tuple[int, ...]
) -> ImageInFile:
  """Returns a member of a tar file as an image of a source."""
  return ImageInFile(name, labels, container, member.offset, member.size_bytes, member.problem)


def progress_bar(size_bytes: int) -> tqdm.tqdm:
  """Returns the bar of listing, which shows itself if that takes longer than a moment."""
  return tqdm.tqdm(
    total=size_bytes,
    desc="list",
    unit="B",
    unit_scale=True,
    delay=PROGRESS_DELAY_SECONDS,
    disable=None,
  )
