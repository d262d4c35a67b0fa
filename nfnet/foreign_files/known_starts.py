"""Recognizes by its first bytes what people often have in the place of the file that they mean."""

import os

from nfnet.foreign_files.regular_files import open_regular

_START_BYTES = 256
_STARTS = (
  (
    b"version https://git-lfs.github.com/spec/",
    "a Git LFS pointer in the place of the file: get the file itself with git lfs pull",
  ),
  (b"<!DOCTYPE", "a web page: download the file again, from its own address"),
  (b"<html", "a web page: download the file again, from its own address"),
)


def known_mistake(path: str | os.PathLike[str]) -> str | None:
  """Returns what a file is that is empty, a Git LFS pointer or a web page; None for any other.

  Args:
    path: path of the file.

  Raises:
    OSError: it cannot be read.
  """
  with open_regular(path) as file:
    start = file.read(_START_BYTES)
  if not start:
    return "empty: get it again"
  lowered = start.lstrip().lower()
  return next((words for known, words in _STARTS if lowered.startswith(known.lower())), None)
