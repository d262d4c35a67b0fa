"""The paths that users give: expanded, refused where no file can be, tried early, and opened.

Every flag that holds a path is defined by `define_path`, and every other text that a user gives as
a path, such as a field of a configuration, passes `local_path` or, where a bucket of Google Cloud
Storage will do, `path_or_bucket`. What these return is a text; `as_path` makes the path of it that
has methods for files, here or in a bucket.
"""

import contextlib
import os
import pathlib
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

from absl import flags

from nfnet.errors import UserError, quoted, shortened

Use = Literal["read", "write file", "write folder"]
"""The use of a path: a command reads it, writes a file there, or writes files into a folder."""

BUCKET_SCHEME = "gs://"
PATH_BYTES_MAX = 4095
"""Linux takes no longer path, and the name of an object in a bucket has at most 1,024 bytes."""

_path_flags: dict[str, Use] = {}
"""Uses of the flags that hold one path each, by name."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# https://cloud.google.com/storage/docs/buckets#naming
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
REFUSED_CATEGORIES = {
  "Cc": "a control character",
  "Zl": "a line end",
  "Zp": "a line end",
  "Cs": "bytes that are not UTF-8",
}
"""Unicode categories of the characters that no name may have, and what a message calls them: they
break lines or control a terminal, or are surrogates, which stand for bytes that are not UTF-8."""


def path_text(name: str, path: Any) -> str:
  """Returns the text of a path that a program gives as an argument.

  Args:
    name: name of the argument.
    path: what the caller gives.

  Raises:
    ValueError: it is neither text nor an object for a path, such as `pathlib.Path`.
  """
  try:
    text = os.fspath(path)
  except TypeError:
    text = None
  if not isinstance(text, str):
    raise ValueError(f"{name}={quoted(path)}: must be a path, as text or as pathlib.Path")
  return text


def local_path(label: str, path: str) -> str:
  """Returns a path of the local file system with `~` and `~USER` expanded.

  Args:
    label: name of what holds the path, such as "--out" or "data.path", for messages.
    path: path as the user gave it.

  Raises:
    UserError: the path is empty, names a bucket or another place that is not a local file, or holds
      a control character or bytes that are not UTF-8, or there is no such user.
  """
  path = path_or_bucket(label, path)
  if not is_in_bucket(path):
    return path
  bucket, _, name = path.removeprefix(BUCKET_SCHEME).partition("/")
  raise UserError(
    f"{label}={shortened(path)} is in a bucket, but has to be a path of this machine: mount the "
    f"bucket with `gcsfuse --implicit-dirs {bucket} DIR` and give {shortened(f'DIR/{name}')}"
  )


def path_or_bucket(label: str, path: str) -> str:
  """Returns a path of the local file system, as `local_path` does, or one in a bucket.

  Args:
    label: name of what holds the path, for messages.
    path: path as the user gave it, or `gs://BUCKET` or `gs://BUCKET/PATH`.

  Returns:
    The path; one in a bucket has no slash at its end and none too many in it.

  Raises:
    UserError: see `local_path`; or the name of the bucket or the path in it is none.
  """
  if not path:
    raise UserError(f"{label}= names no path")
  for category, words in REFUSED_CATEGORIES.items():
    if any(unicodedata.category(character) == category for character in path):
      raise UserError(f"{label}={shortened(path)} holds {words}; give another name")
  if len(os.fsencode(path)) > PATH_BYTES_MAX:
    raise UserError(
      f"{label}={shortened(path)} is a path of {len(path):,} characters; must be at most "
      f"{PATH_BYTES_MAX:,} bytes"
    )
  if is_in_bucket(path):
    bucket, *names = path.removeprefix(BUCKET_SCHEME).split("/")
    names = [name for name in names if name]
    refused = f"{label}={shortened(path)} is not a path in a bucket; write gs://BUCKET/PATH"
    if not _BUCKET.fullmatch(bucket):
      raise UserError(
        f"{refused}; names of buckets have 3 to 63 characters, or up to 222 with dots: lowercase "
        "letters, digits, -, _ and ., first and last a letter or digit"
      )
    if {".", ".."} & set(names):
      raise UserError(f"{refused} without . and ..")
    return BUCKET_SCHEME + "/".join([bucket, *names])
  if _SCHEME.match(path):
    raise UserError(
      f"{label}={shortened(path)} is not a path of this machine; besides these, gs://BUCKET/PATH "
      "is supported for data, weights, workdirs and results; mount any other storage and give its "
      "path"
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith("~"):
    user = path.partition("/")[0]
    raise UserError(
      f"{label}={shortened(path)}: there is no home folder {shortened(user)}; give the whole path, "
      f"or ./{user} for a file of that name"
    )
  return expanded


def _file_or_object(label: str, path: str) -> str:
  """Returns what `path_or_bucket` does of the path of a file, which names no folder of a bucket."""
  found = path_or_bucket(label, path)
  if is_in_bucket(found) and (path.endswith("/") or "/" not in found.removeprefix(BUCKET_SCHEME)):
    raise UserError(f"{label}={shortened(path)} is a folder; give the path of an object in it")
  return found


def is_in_bucket(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is in a bucket of Google Cloud Storage."""
  return os.fspath(path).startswith(BUCKET_SCHEME)


def as_path(path: str | os.PathLike[str]) -> Any:
  """Returns a path with the methods of `pathlib.Path`, here or in a bucket.

  Args:
    path: a path that `path_or_bucket` has returned.

  Returns:
    A `pathlib.Path`, or a `nfnet.buckets.bucket_path.BucketPath`, whose methods are the same.
  """
  if not is_in_bucket(path):
    return pathlib.Path(path)
  # Importing TensorStore takes a while, and few need it.
  from nfnet.buckets.bucket_path import BucketPath

  return BucketPath(path)


def check_writable(label: str, path: str, use: Use) -> None:
  """Checks that a path can be written, by writing an unnamed file where it would be.

  Nothing remains of the check. Missing folders are not created.

  Args:
    label: name of what holds the path, for messages.
    path: a path that `path_or_bucket` has returned.
    use: what is going to be written there.

  Raises:
    UserError: a folder is in the place of a file or a file in the place of a folder, or the system
      does not permit writing there.
  """
  is_folder = use == "write folder"
  if is_in_bucket(path):
    _check_bucket_is_writable(label, path)
    return
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
    path: path of the file. One in a bucket is written at the end of the block.

  Raises:
    UserError: the file cannot be opened, or the block's writes to it fail.
  """
  place = as_path(path)
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as file:
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
  buckets: bool = False,
  suffix: str | None = None,
) -> flags.FlagHolder:
  """Defines a flag that holds a path, expanded by `local_path` and tried by `check_writable`.

  Args:
    name: name of the flag.
    default: default value, or None.
    help_text: description of the flag.
    use: what the command does with the path.
    required: whether the flag has to be given.
    multiple: whether the flag may be repeated, so that its value is a list of paths.
    buckets: whether the path may be in a bucket (`path_or_bucket`). A file that is written always
      may, for which `open_to_write` is made.
    suffix: how the name of a file that is written has to end, such as ".png"; None takes any name.

  Returns:
    Holder of the flag's value.
  """
  parse_path = path_or_bucket if buckets else local_path
  if use == "write file":
    parse_path = _file_or_object
  parser = _PathParser(name, parse_path)
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
    flags.register_validator(
      name, lambda path: path is None or _is_writable(name, path, use, suffix)
    )
  return holder


class _PathParser(flags.ArgumentParser):
  """Parses the value of a flag by `local_path` or `path_or_bucket`."""

  syntactic_help = "a path"

  def __init__(self, name: str, parse_path: Callable[[str, str], str]):
    self._name = name
    self._parse_path = parse_path

  def parse(self, argument: Any) -> str:
    """Returns the expanded path."""
    return self._parse_path(f"--{self._name}", argument)

  def flag_type(self) -> str:
    """Returns what --help calls the type."""
    return "path"


def _is_writable(name: str, path: str, use: Use, suffix: str | None) -> bool:
  # A device or a named pipe has a name that says nothing of what is written there.
  is_named = is_in_bucket(path) or os.path.isfile(path) or not os.path.exists(path)
  if suffix is not None and is_named and not path.lower().endswith(suffix):
    kind = suffix.removeprefix(".").upper()
    raise UserError(
      f"--{name}={shortened(path)} is written as {kind}; give a name that ends in {suffix}"
    )
  check_writable(f"--{name}", path, use)
  if use == "write file":
    _check_unshared(name, path)
  return True


def _check_bucket_is_writable(label: str, path: str) -> None:
  """Writes an object whose name begins with the path, and deletes it."""
  place = as_path(f"{path}/.{secrets.token_hex(8)}.tmp")
  try:
    place.write_bytes(b"")
    place.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f"{label}={path} cannot be written: {error.strerror}") from error


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
