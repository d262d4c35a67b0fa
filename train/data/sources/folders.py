"""Class folders as a source: `train/CLASS/*` with `val/CLASS/*`, or only `CLASS/*`."""

from collections.abc import Iterator

from nfnet.errors import format_count
from train.data.preparation import class_folders, file_tree
from train.data.sources.images import ImageFile
from train.data.sources.labeling import finish_source
from train.data.sources.source import Options, Source

_SUFFIXES_SHOWN_MAX = 5


def read_class_folders(root: str, options: Options) -> Source:
  """Lists the images of class folders; none is opened.

  Args:
    root: path of the folder.
    options: what the user says.

  Raises:
    UserError: the folders can be understood in two ways or in none, or a class has no image.
    OSError: a folder cannot be read.
  """
  tree = file_tree.read_tree(root, options.excluded)
  found = class_folders.read_class_folders(
    tree.root, root, options.layout, options.merge_subfolders
  )
  splits = {
    split: (image_file(file, (label,), root) for file, label in files)
    for split, files in found.splits.items()
  }
  return finish_source(
    found.class_names,
    splits,
    options,
    how=found.how,
    where=root,
    notes=(*found.notes, *notes_of_tree(tree)),
  )


def image_file(file: file_tree.File, labels: tuple[int, ...], root: str) -> ImageFile:
  """Returns a file of a tree as an image of a source.

  Args:
    file: the file.
    labels: class indices.
    root: path of the tree's root.
  """
  return ImageFile(file.name, labels, root, file.size_bytes, file.modified_ns, file.problem)


def notes_of_tree(tree: file_tree.Tree) -> Iterator[str]:
  """Yields sentences about what lies in a folder and is not read."""
  if tree.left_out:
    yield (
      f"left out: {format_count(len(tree.left_out), 'hidden or system item')}: "
      f"{file_tree.examples(tree.left_out)}"
    )
  dangling = [link for folder in tree.root.walk() for link in folder.dangling_links]
  if dangling:
    count = format_count(len(dangling), "dangling link")
    yield f"left out: {count}: {file_tree.examples(dangling)}"
  by_count = sorted(tree.ignored_suffixes.items(), key=lambda pair: -pair[1])
  for suffix, files in by_count[:_SUFFIXES_SHOWN_MAX]:
    yield f"ignored: {format_count(files, 'file')} ending in {suffix or 'nothing'}"
  if rest := sum(files for _, files in by_count[_SUFFIXES_SHOWN_MAX:]):
    yield f"ignored: {format_count(rest, 'file')} with other endings"
