"""Reads the JSON files of a sweep, which a full disk, a crash or a person may have damaged."""

import pathlib
from typing import Any

from nfnet.foreign_files.json_text import parse_json
from nfnet.foreign_files.regular_files import read_regular_file

_BYTES_MAX = 2**20


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns the fields of a JSON object in a file.

  Raises:
    OSError: the file cannot be read.
    ValueError: its content is no JSON object; the message says why, without quoting it.
  """
  content = read_regular_file(path, _BYTES_MAX)
  if not content.strip():
    raise ValueError("is empty")
  try:
    fields = parse_json(content)
  except ValueError as error:
    raise ValueError("is not JSON") from error
  if not isinstance(fields, dict):
    raise ValueError("is not a JSON object")
  return fields
