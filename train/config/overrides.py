"""Parses arguments `--config.FIELD=VALUE`, each of which sets one field of an experiment.

FIELD is a dotted name, for example `--config.optimizer.peak_learning_rate=0.4`.
"""

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from nfnet.command_line import flag_error_text
from nfnet.errors import UserError
from nfnet.system.paths import path_or_bucket
from train.config.experiment import Experiment
from train.config.field_help import describe_fields
from train.config.field_names import (
  field_types,
  field_values,
  path_fields,
  replace_field,
  split_optional,
)
from train.config.requirements import invalid
from train.config.validation import describe_type, has_type, validate

flags.DEFINE_boolean(
  "help_config",
  False,
  "Show the fields of a configuration (--config.FIELD=VALUE), and nothing else.",
)


def _show_fields(is_asked: bool) -> bool:
  """Prints all fields and ends the program, or returns True."""
  if is_asked:
    print(describe_fields())
    sys.exit(0)
  return True


# A validator, since these run in the order of their registration, so that flags which the command
# itself requires are not needed for this.
flags.register_validator("help_config", _show_fields)

_OVERRIDE_PREFIX = re.compile(r"--?config\.")


def parse_arguments(argv: Sequence[str]) -> list[str]:
  """Parses absl's flags and leaves the `--config.FIELD=VALUE` arguments to the main function.

  This is a `flags_parser` for `nfnet.command_line.run_main`.

  Args:
    argv: program name and all arguments.

  With --help, it prints all fields after the flags and ends the program; with --help_config, it
  prints the fields alone.

  Returns:
    The program name and the overrides, which `train.config.files.load_experiment` takes.

  Raises:
    UserError: an unknown flag (names the nearest), a bad value, or a stray argument.
  """
  overrides = [argument for argument in argv[1:] if _OVERRIDE_PREFIX.match(argument)]
  others = [argument for argument in argv[1:] if not _OVERRIDE_PREFIX.match(argument)]
  try:
    program, *stray = flags.FLAGS([argv[0], *others])
  except SystemExit:
    # This is how absl ends once it has printed the flags.
    if not {"-help", "--help"}.isdisjoint(others):
      print(f"\n{describe_fields()}")
    raise
  except flags.UnrecognizedFlagError as error:
    known = [*flags.FLAGS, *(f"config.{field}" for field in field_types())]
    raise UserError(
      f"unknown flag --{error.flagname}; nearest: --{nearest(error.flagname, known)}"
    ) from error
  except flags.Error as error:
    raise UserError(flag_error_text(error)) from error
  if stray:
    raise UserError(f"unexpected argument {stray[0]!r}; every argument is --NAME=VALUE")
  return [program, *overrides]


def override(experiment: Experiment, overrides: Iterable[str]) -> Experiment:
  """Returns the experiment with fields set by arguments `--config.FIELD=VALUE`, validated.

  In fields that hold a path, `~` is expanded.

  Args:
    experiment: experiment to start from.
    overrides: arguments; of two for one field, the later wins.

  Raises:
    UserError: a field is unknown or has a value that it cannot take.
  """
  for argument in overrides:
    experiment = _apply(experiment, argument)
  validate(experiment)
  values = field_values(experiment)
  for field in path_fields():
    if path := values[field]:
      experiment = replace_field(experiment, field, path_or_bucket(field, path))
  return experiment


def as_argument(field: str, value: Any) -> str:
  """Returns the command line argument that sets the field with this dotted name to `value`."""
  if value is None or isinstance(value, bool):
    value = str(value).lower()
  return f"--config.{field}={value}"


def parse_value(label: str, annotation: Any, text: str) -> Any:
  """Reads a value from a command line.

  Args:
    label: what the value is for, as an error message names it.
    annotation: type of the value.
    text: value as it was written; "none" is None where the annotation allows it.

  Raises:
    UserError: the text is not a value of the type.
  """
  base, is_optional = split_optional(annotation)
  if is_optional and text.lower() == "none":
    return None
  value: Any = text
  if base is bool:
    value = {"true": True, "false": False}.get(text.lower())
  elif base in (int, float):
    try:
      value = base(text)
    except ValueError:
      value = None
  if not has_type(value, base):
    raise invalid(label, text, f"must be {describe_type(annotation)}")
  return value


def nearest(name: str, candidates: Iterable[str]) -> str:
  """Returns the most similar of the candidates, for messages about an unknown name."""
  # Comparing takes time in proportion to the length, and a name may be as long as its file.
  return difflib.get_close_matches(name[:100], list(candidates), n=1, cutoff=0.0)[0]


def _apply(experiment: Experiment, argument: str) -> Experiment:
  field, equals, text = _OVERRIDE_PREFIX.sub("", argument, count=1).partition("=")
  annotations = field_types()
  if field not in annotations:
    if inner := [name for name in annotations if name.startswith(f"{field}.")]:
      raise UserError(
        f"--config.{field} is a section of fields; set one of them, "
        f"for example --config.{inner[0]}=VALUE"
      )
    raise UserError(
      f"unknown field --config.{field}; nearest: --config.{nearest(field, annotations)}"
    )
  if not equals:
    raise UserError(f"--config.{field} has no value; write --config.{field}=VALUE")
  value = parse_value(f"--config.{field}", annotations[field], text)
  return replace_field(experiment, field, value)
