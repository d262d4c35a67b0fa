"""The fields of an experiment by their dotted names, such as "optimizer.momentum"."""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from train.config.experiment import Experiment
from train.config.requirements import Path, Requirement, Unit


def field_types() -> dict[str, Any]:
  """Returns the type annotation of every field, by dotted name, without requirements."""
  return {field: _type_hints(section)[name] for field, section, name in _walk(Experiment, "")}


def field_sections() -> dict[str, type]:
  """Returns the section that every field is in, by dotted name."""
  return {field: section for field, section, _ in _walk(Experiment, "")}


def field_requirements() -> dict[str, tuple[Requirement, ...]]:
  """Returns what is required of every field's value beyond its type, by dotted name."""
  return {field: tuple(_extras(hint, Requirement)) for field, hint in _annotations()}


def field_units() -> dict[str, str]:
  """Returns the unit of every number, by dotted name; it is empty for a pure number."""
  return {field: unit.name for field, hint in _annotations() for unit in _extras(hint, Unit)}


def path_fields() -> list[str]:
  """Returns the dotted names of the fields that hold a path, here or in a bucket."""
  return [field for field, hint in _annotations() if any(_extras(hint, Path))]


def field_values(experiment: Experiment) -> dict[str, Any]:
  """Returns the value of every field, by dotted name."""
  return {field: _get(experiment, field) for field in field_types()}


def replace_field(experiment: Experiment, field: str, value: Any) -> Experiment:
  """Returns the experiment with the value of one field replaced, unchecked.

  Args:
    experiment: experiment to start from.
    field: dotted name of the field.
    value: new value of the field.
  """
  return _replace(experiment, field, value)


def split_optional(annotation: Any) -> tuple[Any, bool]:
  """Returns the type that an annotation names beside None, and whether None is allowed."""
  members = typing.get_args(annotation)
  if type(None) not in members:
    return annotation, False
  (base,) = (member for member in members if member is not type(None))
  return base, True


@functools.cache  # Evaluating the annotations takes most of the time that a configuration loads.
def _type_hints(section: type, *, include_extras: bool = False) -> Mapping[str, Any]:
  return types.MappingProxyType(typing.get_type_hints(section, include_extras=include_extras))


def _walk(section: type, prefix: str) -> Iterable[tuple[str, type, str]]:
  for name, annotation in _type_hints(section).items():
    if dataclasses.is_dataclass(annotation):
      yield from _walk(annotation, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", section, name


def _annotations() -> Iterable[tuple[str, Any]]:
  """Yields every field's dotted name and its type annotation with requirements."""
  for field, section, name in _walk(Experiment, ""):
    yield field, _type_hints(section, include_extras=True)[name]


def _extras(annotation: Any, kind: type) -> Iterable[Any]:
  # Either the whole field is annotated, or the type that it has when it is not None.
  for member in (annotation, *typing.get_args(annotation)):
    for extra in getattr(member, "__metadata__", ()):
      if isinstance(extra, kind):
        yield extra


def _get(section: Any, field: str) -> Any:
  for name in field.split("."):
    section = getattr(section, name)
  return section


def _replace(section: Any, field: str, value: Any) -> Any:
  name, _, rest = field.partition(".")
  if rest:
    value = _replace(getattr(section, name), rest, value)
  return dataclasses.replace(section, **{name: value})
