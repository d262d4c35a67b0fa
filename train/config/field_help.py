"""Describes every field of a configuration, from the docstrings of `train.config.experiment`."""

import inspect
import re
import textwrap
import typing
from collections.abc import Iterator

from train.config.experiment import Experiment
from train.config.field_names import (
  field_requirements,
  field_sections,
  field_types,
  field_units,
)
from train.config.validation import describe_type

_WIDTH = 100
_ATTRIBUTE = re.compile(r"  (\w+): (.*)")


def describe_fields() -> str:
  """Returns all fields as text: how each is set, its values, unit, default and meaning."""
  sections, types, requirements = field_sections(), field_types(), field_requirements()
  units = field_units()
  lines = [
    "Fields of a configuration, which a file given as --config sets. Each argument below sets one;",
    "values may also be none where that is said.",
  ]
  last = None
  for field, annotation in types.items():
    section = sections[field]
    if section is not last and section is not Experiment:
      lines += ["", f"{field.rpartition('.')[0]}: {inspect.getdoc(section).splitlines()[0]}"]
    elif section is not last:
      lines.append("")
    last = section
    name = field.rpartition(".")[2]
    # A class attribute is the default; a field without one has to be set.
    default = getattr(section, name, ...)
    allowed = [describe_type(annotation), *(one.words for one in requirements[field])]
    lines.append(f"  --config.{field}=VALUE")
    unit = f"unit: {units[field]}; " if units.get(field) else ""
    lines.append(f"      {', '.join(allowed)}; {unit}{_default(default)}")
    lines += textwrap.wrap(
      # In Python it is None; on the command line, none.
      re.sub(r"\bNone\b", "none", attribute_descriptions(section)[name]),
      _WIDTH,
      initial_indent=" " * 6,
      subsequent_indent=" " * 6,
      break_long_words=False,
    )
  return "\n".join(lines)


def attribute_descriptions(section: type) -> dict[str, str]:
  """Returns what the docstring of a section says of each field, on one line, by its name."""
  return {name: " ".join(text.split()) for name, text in _attributes(section)}


def _attributes(section: type) -> Iterator[tuple[str, str]]:
  _, _, listed = inspect.getdoc(section).partition("Attributes:\n")
  name, text = None, ""
  for line in listed.split("\n\n")[0].splitlines():
    if found := _ATTRIBUTE.fullmatch(line):
      if name:
        yield name, text
      name, text = found.groups()
    else:
      text += line
  if name:
    yield name, text


def _default(value: typing.Any) -> str:
  if value is ...:
    return "has to be set"
  if value is None or isinstance(value, bool):
    return f"default: {str(value).lower()}"
  if isinstance(value, float):
    return f"default: {value:.6g}"
  return f"default: {value}" if value != "" else "no default"
