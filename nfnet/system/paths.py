"""The paths that users give: expanded, refused where no file can be, tried early, and opened.

Every flag that holds a path is defined by `define_path`, and every other text that a user gives as
a path, such as a field of a configuration, passes `local_path`.
"""

import contextlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from absl import flags

from nfnet.errors import UserError, shortened

Use = Literal["read", "write file", "write folder"]
"""The use of a path: a command reads it, writes a file there, or writes files into a folder."""

_path_flags: dict[str, Use] = {}
"""Uses of the flags that hold one path each, by name."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
REFUSED_CATEGORIES = {
  "Cc": "a control character",
  "Zl": "a line end",
  "Zp": "a line end",
  "Cs": "bytes that are not UTF-8",
}
"""Unicode categories of the characters that no name may have, and what a message calls them: they
break lines or control a terminal, or are surrogates, which stand for bytes that are not UTF-8."""


def local_path(label: str, path: str) -> str:
  """Returns a path of the local file system with `~` and `~USER` expanded.

  Args:
    label: name of what holds the path, such as "--out" or "data.path", for messages.
    path: path as the user gave it.

  Raises:
    UserError: the path is empty, names a bucket or another place that is not a local file, or holds
      a control character or bytes that are not UTF-8, or there is no such user.
  """
  if not path:
    raise UserError(f"{label}= names no path")
  for category, words in REFUSED_CATEGORIES.items():
    if any(unicodedata.category(character) == category for character in path):
      raise UserError(f"{label}={shortened(path)} holds {words}; give another name")
  if _SCHEME.match(path):
    raise UserError(
      f"{label}={shortened(path)} is not a path of this machine; mount the bucket and give its path"
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith("~"):
    user = path.partition("/")[0]
    raise UserError(
      f"{label}={shortened(path)}: there is no home folder {shortened(user)}; give the whole path, "
      f"or ./{user} for a file of that name"
    )
  return expanded


def check_writable(label: str, path: str, use: Use) -> None:
  """Checks that a path can be written, by writing an unnamed file where it would be.

  Nothing remains of the check. Missing folders are not created.

  Args:
    label: name of what holds the path, for messages.
    path: a path that `local_path` has returned.
    use: what is going to be written there.

  Raises:
    UserError: a folder is in the place of a file or a file in the place of a folder, or the system
      does not permit writing there.
  """
  is_folder = use == "write folder"
  try:
    if os.path.isdir(path) or path.endswith("/"):
      if not is_folder:
        raise UserError(f"{label}={path} is a folder; give the path of a file")
    elif is_folder and _exists(path):
      raise UserError(f"{label}={path} is a file; give the path of a folder")
    if os.path.isdir(path):
      _try_folder(path)
    elif os.path.isfile(path):
      with open(path, "ab"):
        pass
    elif not _exists(path):
      ancestor = os.path.abspath(path)
      # A file is created where a link leads, but a folder is not.
      while not _exists(ancestor):
        if os.path.islink(ancestor) and (is_folder or ancestor != os.path.abspath(path)):
          raise UserError(
            f"{label}={path}: {ancestor} is a link to {os.readlink(ancestor)}, which is not there; "
            "create that folder, or remove the link"
          )
        ancestor = os.path.dirname(ancestor)
      _try_folder(ancestor)
  except OSError as error:
    raise UserError(
      f"{label}={path} cannot be written: {error.strerror}; give another path"
    ) from error


def obstacle(error: OSError) -> str | None:
  """Returns the path of what kept a file or folder from being written, if something did.

  Args:
    error: error of the system.

  Returns:
    Path of a folder in the place of a file, or of a file in the place of a folder; None if the
    error has another reason.
  """
  if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
    return error.filename2 or error.filename
  return None


@contextlib.contextmanager
def open_to_write(flag: str, path: str) -> Iterator[BinaryIO]:
  """Opens a file for a result, and creates its folder if that is not there.

  Args:
    flag: name of the flag that the path came from, for the error message.
    path: path of the file.

  Raises:
    UserError: the file cannot be opened, or the block's writes to it fail.
  """
  try:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
      yield file
  except OSError as error:
    raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from error


def define_path(
  name: str,
  default: str | None,
  help_text: str,
  *,
  use: Use,
  required: bool = False,
  multiple: bool = False,
) -> flags.FlagHolder:
  """Defines a flag that holds a path, expanded by `local_path` and tried by `check_writable`.

  Args:
    name: name of the flag.
    default: default value, or None.
    help_text: description of the flag.
    use: what the command does with the path.
    required: whether the flag has to be given.
    multiple: whether the flag may be repeated, so that its value is a list of paths.

  Returns:
    Holder of the flag's value.
  """
  parser = _PathParser(name)
  serializer = flags.ArgumentSerializer()
  if multiple:
    holder = flags.DEFINE_multi(parser, serializer, name, default, help_text, required=required)
  else:
    holder = flags.DEFINE(
      parser, name, default, help_text, serializer=serializer, required=required
    )
  if not multiple:
    _path_flags[name] = use
  if use != "read":
    # Not in the parser, which absl calls for default values too.
    flags.register_validator(name, lambda path: path is None or _is_writable(name, path, use))
  return holder


class _PathParser(flags.ArgumentParser):
  """Parses the value of a flag by `local_path`."""

  syntactic_help = "a path"

  def __init__(self, name: str):
    self._name = name

  def parse(self, argument: Any) -> str:
    """Returns the expanded path."""
    return local_path(f"--{self._name}", argument)

  def flag_type(self) -> str:
    """Returns what --help calls the type."""
    return "path"


def _is_writable(name: str, path: str, use: Use) -> bool:
  check_writable(f"--{name}", path, use)
  if use == "write file":
    _check_unshared(name, path)
  return True


def _check_unshared(name: str, path: str) -> None:
  """Raises a UserError if a file that is written is also read, or is that of another flag."""
  # A device or a named pipe may be written by several.
  if _exists(path) and not os.path.isfile(path):
    return
  for other, use in _path_flags.items():
    if other == name or other not in flags.FLAGS or use == "write folder":
      continue
    value = flags.FLAGS[other].value
    if value is not None and os.path.realpath(value) == os.path.realpath(path):
      raise UserError(f"--{name}={path} is the file of --{other}, too; give another path")


def _exists(path: str) -> bool:
  """Returns whether something is there; an error of the system other than absence is raised."""
  try:
    os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  return True


def _try_folder(folder: str) -> None:
  if not os.path.isdir(folder):
    raise NotADirectoryError(None, f"{folder} is not a folder")
  with tempfile.TemporaryFile(dir=folder):
    pass
