"""Loads an experiment from a configuration, a Python file with a function `experiment()`.

The files of `train.configs` can be named without their path, as they lie wherever this project is
installed.
"""

import inspect
import os
import pathlib
import re
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any

from nfnet.errors import UserError, quoted
from nfnet.foreign_files.regular_files import read_regular_file
from nfnet.system.paths import local_path
from train.config.experiment import Experiment
from train.config.field_names import field_types
from train.config.overrides import nearest, override, parse_value

_BYTES_MAX = 2**20
_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load_experiment(path: str, overrides: Iterable[str] = ()) -> Experiment:
  """Runs the configuration file, applies the overrides and validates the result.

  Args:
    path: a Python file whose function `experiment()` returns an `Experiment`, or the name of one of
      `train.configs`, such as `imagenet`. If the function has keyword arguments, they may follow:
      `FILE.py:variant=F3,epochs=2` or `imagenet:variant=F3`.
    overrides: arguments `--config.FIELD=VALUE`; of two for one field, the later wins.

  Raises:
    UserError: the file is missing or fails, or a field is unknown or has a value it cannot take.
  """
  file, arguments = split_arguments(path)
  typed = path[: len(path) - len(arguments)].removesuffix(":")
  return override(_run_file(file, arguments, typed), overrides)


def split_arguments(path_and_arguments: str) -> tuple[str, str]:
  """Returns the path of a configuration, and its arguments, which may be empty.

  Args:
    path_and_arguments: what `load_experiment` takes.

  Raises:
    UserError: it is neither a path nor the name of one of `train.configs`.
  """
  path, colon, arguments = path_and_arguments.partition(".py:")
  if colon:
    return f"{path}.py", arguments
  name, _, arguments = path_and_arguments.partition(":")
  # A file of the user's without an extension is still named by its path.
  if not re.fullmatch(r"[\w-]+", name) or os.path.isfile(path_and_arguments):
    return path_and_arguments, ""
  if name not in (names := _packaged_names()):
    raise UserError(f"configuration {quoted(name)} is neither a file nor one of {', '.join(names)}")
  return str(_CONFIGS / f"{name}.py"), arguments


def _packaged_names() -> list[str]:
  return sorted(path.stem for path in _CONFIGS.glob("[!_]*.py"))


def _run_file(path: str, arguments: str, typed: str) -> Experiment:
  """Runs the configuration file at a path, which messages name as the user typed it."""
  path = local_path("configuration file", path)
  try:
    source = read_regular_file(path, _BYTES_MAX).decode()
  # Text that is not UTF-8, or a null character in the path, is a ValueError.
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    name, hint = pathlib.PurePath(path).stem, ""
    if isinstance(error, FileNotFoundError) and name in _packaged_names():
      hint = f"; the configuration of this name that is installed is --config={name}"
      hint += f":{arguments}" if arguments else ""
    raise UserError(f"configuration file {path!r} cannot be read: {reason}{hint}") from error
  # Executed and not imported, because an import would leave bytecode beside the file.
  module = types.ModuleType("experiment_configuration")
  module.__file__ = path
  try:
    exec(compile(source, path, "exec"), module.__dict__)
    if not callable(getattr(module, "experiment", None)):
      raise UserError(
        f"configuration file {path!r} has no function experiment(); "
        "define one that returns a train.config.experiment.Experiment"
      )
    values = _parse_file_arguments(path, module.experiment, arguments, typed)
    experiment = module.experiment(**values)
  except UserError:
    raise
  except Exception as error:
    raise UserError(_explain_failure(path, error)) from error
  if not isinstance(experiment, Experiment):
    raise UserError(
      f"configuration file {path!r}: experiment() returned {type(experiment).__name__}, "
      "must return a train.config.experiment.Experiment"
    )
  return experiment


def _parse_file_arguments(
  path: str, function: Callable[..., Experiment], arguments: str, typed: str
) -> dict[str, Any]:
  # eval_str, because `from __future__ import annotations` leaves types as text.
  parameters = inspect.signature(function, eval_str=True).parameters
  annotations = {name: _argument_type(parameter) for name, parameter in parameters.items()}
  values = {}
  for argument in filter(None, arguments.split(",")):
    name, equals, text = argument.partition("=")
    if values and not equals and name not in annotations:
      before = list(values)[-1]
      raise UserError(
        f"configuration file {path!r}: commas separate its arguments, so {quoted(argument)} is not "
        f"part of {before}; if {before} is a path with a comma, rename what it leads to or give a "
        "link to it (ln -s)"
      )
    if name not in annotations:
      hint = f"nearest: {nearest(name, annotations)}" if annotations else "it takes none"
      raise UserError(f"configuration file {path!r} has no argument {name!r}; {hint}")
    if not equals:
      raise UserError(f"configuration file {path!r}: argument {name} has no value")
    values[name] = parse_value(f"argument {name} of {path}", annotations[name], text)
  required = [
    name
    for name, parameter in parameters.items()
    if parameter.default is parameter.empty
    and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
  ]
  if absent := [name for name in required if name not in values]:
    example = ",".join(
      [*filter(None, arguments.split(",")), *(f"{name}={name.upper()}" for name in absent)]
    )
    raise UserError(
      f"configuration file {path!r} has no value for {' and '.join(absent)}: write its arguments "
      f"after a colon, --config={typed}:{example}"
    )
  return values


def _argument_type(parameter: inspect.Parameter) -> Any:
  """Returns the type of an argument: its annotation's, or else its default's, or else a text."""
  if parameter.annotation is not parameter.empty:
    return parameter.annotation
  return str if parameter.default in (parameter.empty, None) else type(parameter.default)


def _explain_failure(path: str, error: Exception) -> str:
  if isinstance(error, SyntaxError) and error.filename == path:
    return f"configuration file {path}, line {error.lineno}: {error.msg}"
  lines = [
    frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
  ]
  place = f", line {lines[-1]}" if lines else ""
  hint = ""
  if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
    names = [name for field in field_types() for name in field.split(".")]
    hint = f"; nearest field: {nearest(unknown[1], names)}"
  return f"configuration file {path}{place}: {type(error).__name__}: {error}{hint}"
