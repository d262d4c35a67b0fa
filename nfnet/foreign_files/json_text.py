"""Parses JSON that somebody else may have written, and checks its structure."""

import json
import os
from typing import Any

from nfnet.errors import UserError, quoted, short_text, shortened
from nfnet.foreign_files.regular_files import read_regular_file

FILE_BYTES_MAX = 16 * 2**20
OBJECT_BYTES_MAX = 2**20
"""A manifest of 21,841 classes and 8,192 record files has 2 MB. Parsed, JSON takes up to 25 times
its length."""


_SIZES = range(2**63)


def parse_json(content: bytes | str) -> Any:
  """Returns the value that JSON text describes.

  Raises:
    ValueError: the text is not JSON, is nested too deeply for the parser, or names a field twice;
      the message is short.
  """
  try:
    return json.loads(content, object_pairs_hook=_without_duplicates)
  except RecursionError as error:
    raise ValueError("values are nested too deeply") from error


def read_json(path: str | os.PathLike[str], structure: Any = Any) -> Any:
  """Reads a JSON file of up to `FILE_BYTES_MAX`.

  Args:
    path: path of the file.
    structure: structure that the value must have; see `check_structure`.

  Returns:
    The value.

  Raises:
    UserError: the file cannot be read, is not JSON, or has another structure; the message begins
      with the path.
  """
  try:
    value = parse_json(read_regular_file(path, FILE_BYTES_MAX))
    check_structure(value, structure)
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise UserError(f"{path} is damaged: {short_text(error)}") from error
  return value


def read_json_object(
  path: str | os.PathLike[str], bytes_max: int = OBJECT_BYTES_MAX
) -> dict[str, Any]:
  """Returns the fields of a JSON object in a file.

  Args:
    path: path of the file.
    bytes_max: most bytes that the file may have.

  Raises:
    OSError: the file cannot be read.
    ValueError: its content is not a JSON object; the message says why, without quoting it.
  """
  content = read_regular_file(path, bytes_max)
  if not content.strip():
    raise ValueError("is empty")
  try:
    fields = parse_json(content)
  except ValueError as error:
    raise ValueError("is not JSON") from error
  if not isinstance(fields, dict):
    raise ValueError("is not a JSON object")
  return fields


def check_structure(value: Any, structure: Any) -> None:
  """Checks that a value from JSON consists of what it should consist of.

  Args:
    value: value as `parse_json` returns it.
    structure: `int` for a size (not negative, below 2**63), a `range` for an integer in it, `str`,
      `bool`, `dict`, `list`, or Any; `[structure]` for a list of such values; `{str: structure}`
      for an object of any fields; `{"name": structure, "other?": structure}` for an object that has
      at least the fields whose names do not end with a question mark.

  Raises:
    ValueError: it does not; the message names the first place that is different.
  """
  if difference := _difference(value, structure):
    place, text = difference
    raise ValueError(f"{place.removeprefix('.') or 'the whole'} {text}")


def _difference(value: Any, structure: Any) -> tuple[str, str] | None:
  """Returns the place at which a value has another structure, and what is wrong with it."""
  if structure is Any:
    return None
  if isinstance(structure, list):
    if not isinstance(value, list):
      return "", f"is {quoted(value)}, must be a list"
    for index, one in enumerate(value):
      if inner := _difference(one, structure[0]):
        return f"[{index}]{inner[0]}", inner[1]
    return None
  if isinstance(structure, dict):
    if not isinstance(value, dict):
      return "", f"is {quoted(value)}, must be an object"
    if str in structure:
      fields = [(field, structure[str]) for field in value]
    else:
      fields = [(name.removesuffix("?"), inner) for name, inner in structure.items()]
      for name in structure:
        if not name.endswith("?") and name not in value:
          return "", f"has no field {quoted(name)}"
    for field, field_structure in fields:
      if field in value and (inner := _difference(value[field], field_structure)):
        return f".{shortened(field)}{inner[0]}", inner[1]
    return None
  if structure is int:
    structure = _SIZES
  if isinstance(structure, range):
    is_right = type(value) is int and value in structure
    needed = f"an integer from {structure[0]} to {structure[-1]}"
  else:
    is_right, needed = type(value) is structure, f"of type {structure.__name__}"
  return None if is_right else ("", f"is {quoted(value)}, must be {needed}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise ValueError(f"the field {quoted(twice)} is there twice")
  return fields
