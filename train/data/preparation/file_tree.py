"""Lists the image files below a folder without opening any of them, whatever else lies there.

Links are followed. A folder that can be reached by two paths, for example through a link to a
folder above it, is refused, because its images would be read twice. What the operating system, a
file manager or a notebook keeps for itself is left out.
"""

import collections
import dataclasses
import os
import stat
from collections.abc import Iterator, Sequence

from nfnet.errors import UserError, shortened
from nfnet.images.decoding import IMAGE_SUFFIXES

# Besides these, names that begin with a dot are left out: .ipynb_checkpoints, .@__thumb,
# .AppleDouble, ._001.jpg.
_SYSTEM_NAMES = frozenset(
  (
    *("@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "__macosx", "__pycache__"),
    *("$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
  )
)
_KINDS = (
  (stat.S_ISFIFO, "a FIFO"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)
_EXAMPLES_MAX = 3


@dataclasses.dataclass(frozen=True, slots=True)
class File:
  """A file whose name ends as that of an image.

  Attributes:
    name: path below the root, with forward slashes.
    size_bytes: length of the file.
    modified_ns: time of its last change in nanoseconds.
    problem: why it cannot be read; empty for a regular file.
  """

  name: str
  size_bytes: int = 0
  modified_ns: int = 0
  problem: str = ""


@dataclasses.dataclass(slots=True)
class Folder:
  """A folder and what lies in it.

  Attributes:
    name: path below the root, with forward slashes; empty for the root.
    images: image files directly in it, sorted by name.
    folders: folders directly in it, sorted by name.
    dangling_links: paths of the links directly in it that lead nowhere and do not end as images.
  """

  name: str
  images: list[File] = dataclasses.field(default_factory=list)
  folders: list["Folder"] = dataclasses.field(default_factory=list)
  dangling_links: list[str] = dataclasses.field(default_factory=list)

  @property
  def own_name(self) -> str:
    """Last part of its path."""
    return self.name.rsplit("/", 1)[-1]

  def walk(self) -> Iterator["Folder"]:
    """Yields the folder and all folders below it, each before those in it."""
    waiting = [self]
    while waiting:
      folder = waiting.pop()
      yield folder
      waiting += reversed(folder.folders)

  def has_images(self) -> bool:
    """Returns whether there is an image in it or anywhere below it."""
    return any(folder.images for folder in self.walk())


@dataclasses.dataclass(slots=True)
class Tree:
  """All image files below a folder, and what else was seen there.

  Attributes:
    root: the folder.
    ignored_suffixes: number of other files, by suffix.
    left_out: paths of the entries left out because of their names.
  """

  root: Folder
  ignored_suffixes: dict[str, int]
  left_out: list[str]


def read_tree(root: str, excluded: str | None = None, table: str | None = None) -> Tree:
  """Lists what lies below a folder.

  Args:
    root: path of the folder.
    excluded: path of a folder that is not listed, which need not exist.
    table: path of a file that the caller reads, which therefore is not ignored.

  Raises:
    UserError: one folder can be reached on two ways, or `excluded` is the root.
    OSError: a folder cannot be read.
  """
  top = Folder("")
  tree = Tree(top, {}, [])
  ignored: collections.Counter[str] = collections.Counter()
  seen = {_identity(os.stat(root)): ""}
  table_identity = None if table is None or not os.path.exists(table) else _identity(os.stat(table))
  excluded_identity = None
  if excluded is not None and os.path.isdir(excluded):
    excluded_identity = _identity(os.stat(excluded))
    if excluded_identity in seen:
      raise UserError(f"source and out are one folder, {root}: choose another --out")
  waiting = [top]
  while waiting:
    folder = waiting.pop()
    with os.scandir(os.path.join(root, folder.name)) as entries:
      sorted_entries = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in sorted_entries:
      name = f"{folder.name}/{entry.name}" if folder.name else entry.name
      if is_of_the_system(entry.name):
        tree.left_out.append(name)
        continue
      suffix = os.path.splitext(entry.name)[1].lower()
      is_image = suffix in IMAGE_SUFFIXES
      try:
        status = entry.stat()
      except OSError as error:
        if is_image:
          what = "is a link that leads nowhere" if entry.is_symlink() else "cannot be found"
          folder.images.append(File(name, problem=f"{what}: {error.strerror}"))
          continue
        if not entry.is_symlink():
          raise
        folder.dangling_links.append(name)
        continue
      if stat.S_ISDIR(status.st_mode):
        identity = _identity(status)
        if identity == excluded_identity:
          continue
        if identity in seen:
          raise _reached_twice(seen[identity], name)
        seen[identity] = name
        folder.folders.append(Folder(name))
      elif not is_image:
        ignored[suffix] += _identity(status) != table_identity
      elif stat.S_ISREG(status.st_mode):
        folder.images.append(File(name, status.st_size, status.st_mtime_ns))
      else:
        folder.images.append(File(name, problem=f"it is {_kind(status.st_mode)}"))
    waiting += reversed(folder.folders)
  tree.ignored_suffixes = dict(sorted((+ignored).items()))
  return tree


def is_of_the_system(name: str) -> bool:
  """Returns whether a file or folder of this name is hidden, or a system keeps it for itself."""
  return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def examples(names: Sequence[str]) -> str:
  """Returns the first few names in a form fit for a message, and how many more there are."""
  text = ", ".join(map(shortened, names[:_EXAMPLES_MAX]))
  more = len(names) - _EXAMPLES_MAX
  return f"{text}, and {more:,} more" if more > 0 else text


def _identity(status: os.stat_result) -> tuple[int, int]:
  return status.st_dev, status.st_ino


def _kind(mode: int) -> str:
  return next((text for is_kind, text in _KINDS if is_kind(mode)), "no regular file")


def _reached_twice(first: str, second: str) -> UserError:
  return UserError(
    f"{second} and {first or 'the source folder itself'} are one folder, so its images would be "
    "read twice: remove the link between them"
  )
