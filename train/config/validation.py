"""Checks a whole experiment: types, the requirements beside its fields, the rules of its sections.

The requirements and rules themselves are in `train.config.experiment`.
"""

import dataclasses
import typing
from typing import Any

from nfnet.foreign_files.numbers import is_number
from train.config.experiment import Experiment
from train.config.field_names import field_requirements, field_types, field_values, split_optional
from train.config.requirements import invalid


def validate(experiment: Experiment) -> None:
  """Checks types, ranges and the rules between fields.

  Raises:
    UserError: names the field, its value and the requirement.
  """
  for name, section in typing.get_type_hints(Experiment).items():
    if dataclasses.is_dataclass(section) and not isinstance(getattr(experiment, name), section):
      raise invalid(name, getattr(experiment, name), f"must be a {section.__name__}(...)")
  values = field_values(experiment)
  for field, annotation in field_types().items():
    if not has_type(values[field], annotation):
      raise invalid(field, values[field], f"must be {describe_type(annotation)}")
  for field, requirements in field_requirements().items():
    for requirement in requirements:
      if values[field] is not None and not requirement.holds(values[field]):
        raise invalid(field, values[field], f"must be {requirement.words}")
  experiment.check()


def has_type(value: Any, annotation: Any) -> bool:
  """Returns whether a field with this annotation may hold the value."""
  base, is_optional = split_optional(annotation)
  if value is None:
    return is_optional
  if typing.get_origin(base) is typing.Literal:
    return value in typing.get_args(base)
  if base is float:
    return is_number(value)
  return type(value) is base and (base is not int or abs(value) < 2**63)


def describe_type(annotation: Any) -> str:
  """Returns an annotation in words, such as "an integer or none", as they follow "must be"."""
  base, is_optional = split_optional(annotation)
  if typing.get_origin(base) is typing.Literal:
    description = f"one of {', '.join(typing.get_args(base))}"
  else:
    description = {
      bool: "true or false",
      int: "an integer",
      float: "a finite number",
      str: "text",
    }[base]
  return description + (" or none" if is_optional else "")
