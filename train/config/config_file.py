"""From a configuration file and a command line to one validated `Experiment`.

A configuration is a Python file with a function `experiment()`. Each field can be set from the
command line by its dotted name, for example `--config.optimizer.peak_learning_rate=0.4`.
"""

import dataclasses
import difflib
import inspect
import math
import pathlib
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags

from nfnet.activations import ACTIVATIONS
from nfnet.errors import UserError
from nfnet.variants import get_variant
from train.config.experiment import Experiment

_OVERRIDE_PREFIX = re.compile(r"--?config\.")


def parse_arguments(argv: Sequence[str]) -> list[str]:
  """A `flags_parser` for absl that leaves the `--config.FIELD=VALUE` arguments to the main.

  Args:
    argv: program name and all arguments.

  Returns:
    The program name and the overrides, which are for `load_experiment`. absl's flags are parsed.

  Raises:
    UserError: an unknown flag (names the nearest), a bad value, or a stray argument.
  """
  overrides = [argument for argument in argv[1:] if _OVERRIDE_PREFIX.match(argument)]
  others = [argument for argument in argv[1:] if not _OVERRIDE_PREFIX.match(argument)]
  try:
    program, *stray = flags.FLAGS([argv[0], *others])
  except flags.UnrecognizedFlagError as error:
    known = [*flags.FLAGS, *(f"config.{field}" for field in field_types())]
    raise UserError(
      f"unknown flag --{error.flagname}; nearest: --{nearest(error.flagname, known)}"
    ) from error
  except flags.Error as error:
    raise UserError(str(error)) from error
  if stray:
    raise UserError(f"unexpected argument {stray[0]!r}; every argument is --NAME=VALUE")
  return [program, *overrides]


def load_experiment(path: str, overrides: Iterable[str] = ()) -> Experiment:
  """Runs the configuration file, applies the overrides and validates the result.

  Args:
    path: a Python file whose function `experiment()` returns an `Experiment`. Where the function
      has keyword arguments, they may follow: `FILE.py:variant=F3,epochs=2`.
    overrides: arguments `--config.FIELD=VALUE`; a later one wins.

  Raises:
    UserError: the file is missing or fails, or a field is unknown or has a value it cannot take.
  """
  return override(_run_file(path), overrides)


def override(experiment: Experiment, overrides: Iterable[str]) -> Experiment:
  """Returns the experiment with fields set by arguments `--config.FIELD=VALUE`, validated.

  Raises:
    UserError: a field is unknown or has a value it cannot take.
  """
  for argument in overrides:
    experiment = _apply(experiment, argument)
  validate(experiment)
  return experiment


def to_json(experiment: Experiment) -> dict[str, Any]:
  """Nested dict of JSON values; `from_json` gives an equal experiment back, also through text."""
  return dataclasses.asdict(experiment)


def from_json(fields: dict[str, Any]) -> Experiment:
  """The inverse of `to_json`. A field that is absent takes its default.

  Raises:
    UserError: a field that `Experiment` does not have.
  """
  return _section_from_json(Experiment, fields, prefix="")


def field_types() -> dict[str, Any]:
  """Type annotation of every field, by dotted name."""
  return dict(_walk_types(Experiment, prefix=""))


def field_values(experiment: Experiment) -> dict[str, Any]:
  """Value of every field, by dotted name."""
  return {field: _get(experiment, field) for field in field_types()}


def as_argument(field: str, value: Any) -> str:
  """The command line argument that sets `field` to `value`."""
  if value is None or isinstance(value, bool):
    value = str(value).lower()
  return f"--config.{field}={value}"


def validate(experiment: Experiment) -> None:
  """Checks types, ranges and the rules between fields.

  Raises:
    UserError: names the field, its value and the requirement.
  """
  for name, section in typing.get_type_hints(Experiment).items():
    if dataclasses.is_dataclass(section) and not isinstance(getattr(experiment, name), section):
      raise _invalid(name, getattr(experiment, name), f"must be a {section.__name__}(...)")
  values = field_values(experiment)
  for field, annotation in field_types().items():
    if not _has_type(values[field], annotation):
      raise _invalid(field, values[field], f"must be {_describe(annotation)}")
  for requirement, holds, fields in _RANGES:
    for field in fields:
      if values[field] is not None and not holds(values[field]):
        raise _invalid(field, values[field], f"must be {requirement}")

  try:
    get_variant(experiment.model.variant)
  except ValueError as error:
    raise UserError(f"model.variant: {error}") from error
  if experiment.model.activation not in ACTIVATIONS:
    raise _invalid(
      "model.activation", experiment.model.activation, f"must be one of {', '.join(ACTIVATIONS)}"
    )

  for one, other in (
    ("schedule.train_epochs", "schedule.train_steps"),
    ("optimizer.warmup_epochs", "optimizer.warmup_steps"),
  ):
    if (values[one] is None) == (values[other] is None):
      raise UserError(
        f"{one}={values[one]} and {other}={values[other]}: exactly one of the two must be set; "
        "set the other to none"
      )
  for unit in ("epochs", "steps"):
    warmup, train = values[f"optimizer.warmup_{unit}"], values[f"schedule.train_{unit}"]
    if warmup is not None and train is not None and warmup > train:
      raise _invalid(
        f"optimizer.warmup_{unit}", warmup, f"must not exceed schedule.train_{unit}={train}"
      )
  if experiment.data.batch_size % experiment.optimizer.gradient_accumulation:
    raise _invalid(
      "optimizer.gradient_accumulation",
      experiment.optimizer.gradient_accumulation,
      f"must divide data.batch_size={experiment.data.batch_size}",
    )
  if experiment.data.batch_size % experiment.data.repetitions:
    raise _invalid(
      "data.repetitions",
      experiment.data.repetitions,
      f"must divide data.batch_size={experiment.data.batch_size}",
    )
  sharpness = experiment.sharpness
  if (sharpness.radius is None) != (sharpness.group_images is None):
    raise UserError(
      f"sharpness.radius={sharpness.radius} and sharpness.group_images={sharpness.group_images}: "
      "set both (SAM; 0.05 in the papers, and the examples that share a perturbation) or none"
    )
  if experiment.loss.label_smoothing and experiment.loss.kind != "softmax":
    raise _invalid(
      "loss.label_smoothing",
      experiment.loss.label_smoothing,
      f"must be 0 with loss.kind={experiment.loss.kind}; it is for softmax only",
    )


_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
  (
    "at least 1",
    lambda value: value >= 1,
    (
      "data.num_classes",
      "data.batch_size",
      "data.evaluation_batch_size",
      "data.train_pixels",
      "data.evaluation_pixels",
      "data.crop_aspect_ratio_max",
      "data.repetitions",
      "optimizer.gradient_accumulation",
      "sharpness.group_images",
      "schedule.train_steps",
      "schedule.log_every_steps",
      "schedule.evaluate_every_steps",
      "schedule.checkpoint_every_steps",
      "schedule.checkpoints_kept",
    ),
  ),
  (
    "at least 0",
    lambda value: value >= 0,
    (
      "data.evaluation_resize_margin",
      "data.rand_augment_layers",
      "data.rand_augment_magnitude",
      "data.workers",
      "optimizer.warmup_epochs",
      "optimizer.warmup_steps",
      "optimizer.weight_decay",
    ),
  ),
  (
    "greater than 0",
    lambda value: value > 0,
    (
      "mixing.mixup_alpha",
      "optimizer.peak_learning_rate",
      "optimizer.agc_clipping",
      "sharpness.radius",
      "schedule.train_epochs",
    ),
  ),
  (
    "at least 0 and less than 1",
    lambda value: 0 <= value < 1,
    (
      "model.stochastic_depth_rate",
      "model.dropout_rate",
      "optimizer.momentum",
      "optimizer.ema_decay",
      "loss.label_smoothing",
    ),
  ),
  (
    "greater than 0 and at most 1",
    lambda value: 0 < value <= 1,
    ("data.crop_area_min", "sharpness.ascent_share"),
  ),
  ("between 0 and 1", lambda value: 0 <= value <= 1, ("data.bad_image_share_max",)),
  # Both jax.random and Grain take 32 bits.
  ("between 0 and 4294967295", lambda value: 0 <= value < 2**32, ("seed",)),
)


def _run_file(path_and_arguments: str) -> Experiment:
  path, colon, arguments = path_and_arguments.partition(".py:")
  if colon:
    path += ".py"
  try:
    source = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise UserError(f"configuration file {path!r} cannot be read: {reason}") from error
  module = types.ModuleType("experiment_configuration")
  module.__file__ = path
  try:
    exec(compile(source, path, "exec"), module.__dict__)
    if not callable(getattr(module, "experiment", None)):
      raise UserError(
        f"configuration file {path!r} has no function experiment(); "
        "define one that returns a train.config.experiment.Experiment"
      )
    experiment = module.experiment(**_parse_file_arguments(path, module.experiment, arguments))
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
  path: str, function: Callable[..., Experiment], arguments: str
) -> dict[str, Any]:
  annotations = {
    name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()
  }
  values = {}
  for argument in filter(None, arguments.split(",")):
    name, equals, text = argument.partition("=")
    if name not in annotations:
      hint = f"nearest: {nearest(name, annotations)}" if annotations else "it takes none"
      raise UserError(f"configuration file {path!r} has no argument {name!r}; {hint}")
    if not equals:
      raise UserError(f"configuration file {path!r}: argument {name} has no value")
    values[name] = _parse(f"argument {name} of {path}", annotations[name], text)
  return values


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
  return _replace(experiment, field, _parse(f"--config.{field}", annotations[field], text))


def _parse(label: str, annotation: Any, text: str) -> Any:
  base, optional = _split_optional(annotation)
  if optional and text.lower() == "none":
    return None
  value: Any = None
  if base is bool:
    value = {"true": True, "false": False}.get(text.lower())
  elif base in (int, float):
    try:
      value = base(text)
    except ValueError:
      value = None
  else:
    value = text
  if not _has_type(value, base):
    raise _invalid(label, text, f"must be {_describe(annotation)}")
  return value


def _has_type(value: Any, annotation: Any) -> bool:
  base, optional = _split_optional(annotation)
  if value is None:
    return optional
  if typing.get_origin(base) is typing.Literal:
    return value in typing.get_args(base)
  if base is float:
    # A number written without a point is a float too; bool is an int to Python, not to a person.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  return type(value) is base


def _describe(annotation: Any) -> str:
  base, optional = _split_optional(annotation)
  if typing.get_origin(base) is typing.Literal:
    description = f"one of {', '.join(typing.get_args(base))}"
  else:
    description = {
      bool: "true or false",
      int: "an integer",
      float: "a finite number",
      str: "text",
    }[base]
  return description + (" or none" if optional else "")


def _split_optional(annotation: Any) -> tuple[Any, bool]:
  if isinstance(annotation, types.UnionType):
    (base,) = (member for member in typing.get_args(annotation) if member is not types.NoneType)
    return base, True
  return annotation, False


def _invalid(field: str, value: Any, requirement: str) -> UserError:
  return UserError(f"{field}={value!r}: {requirement}")


def nearest(name: str, candidates: Iterable[str]) -> str:
  """The most similar of the candidates, for messages about unknown names."""
  return difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.0)[0]


def _walk_types(section: type, prefix: str) -> Iterable[tuple[str, Any]]:
  for name, annotation in typing.get_type_hints(section).items():
    if dataclasses.is_dataclass(annotation):
      yield from _walk_types(annotation, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", annotation


def _get(section: Any, field: str) -> Any:
  for name in field.split("."):
    section = getattr(section, name)
  return section


def _replace(section: Any, field: str, value: Any) -> Any:
  name, _, rest = field.partition(".")
  if rest:
    value = _replace(getattr(section, name), rest, value)
  return dataclasses.replace(section, **{name: value})


def _section_from_json(section: type, fields: dict[str, Any], prefix: str) -> Any:
  annotations = typing.get_type_hints(section)
  arguments = {}
  for name, value in fields.items():
    if name not in annotations:
      raise UserError(
        f"saved experiment has the field {prefix}{name}, which this version does not know; "
        "use the version that saved it"
      )
    annotation = annotations[name]
    if dataclasses.is_dataclass(annotation):
      value = _section_from_json(annotation, value, f"{prefix}{name}.")
    arguments[name] = value
  return section(**arguments)
