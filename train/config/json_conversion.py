"""Converts experiments to JSON values and back, for checkpoints and for comparing experiments."""

import dataclasses
import typing
from typing import Any

from nfnet.errors import UserError, quoted, shortened
from train.config.experiment import Experiment


def to_json(experiment: Experiment) -> dict[str, Any]:
  """Returns a nested dict of JSON values, from which `from_json` makes an equal experiment."""
  return dataclasses.asdict(experiment)


def from_json(fields: dict[str, Any]) -> Experiment:
  """Returns the experiment that `to_json` has converted; an absent field takes its default.

  Raises:
    UserError: there is a field that `Experiment` does not have, one is missing that has no default,
      or these are not such fields.
  """
  return _section_from_json(Experiment, fields, prefix="")


def _section_from_json(section: type, fields: dict[str, Any], prefix: str) -> Any:
  if not isinstance(fields, dict):
    raise UserError(f"saved experiment: {prefix[:-1] or 'it'} is {quoted(fields)}, not fields")
  annotations = typing.get_type_hints(section)
  arguments = {}
  for name, value in fields.items():
    if name not in annotations:
      raise UserError(
        f"saved experiment has the field {prefix}{shortened(name)}, which this version does not "
        "know; use the version that saved it"
      )
    annotation = annotations[name]
    if dataclasses.is_dataclass(annotation):
      value = _section_from_json(annotation, value, f"{prefix}{name}.")
    arguments[name] = value
  for field in dataclasses.fields(section):
    if field.default is field.default_factory is dataclasses.MISSING and field.name not in fields:
      raise UserError(f"saved experiment has no field {prefix}{field.name}")
  return section(**arguments)
