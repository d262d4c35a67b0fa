"""Plans: the file that defines what a sweep runs, and the trials that it asks for.

A plan is a TOML file:

    config = "jft_pretrain:variant={variant},epochs={epochs}"      # or a file, FILE.py:variant=...
    variants = ["F0", "F3", "F7+"]
    epochs = [0.25, 0.5, 1, 2]
    learning_rates = "search"       # or a list of rates, all of which are run
    start_learning_rate = 1.6       # for a search only; its grid has factor 2

    [overrides]                     # fields of the configuration, the same for all trials
    data.path = "/shared/jft"

`{variant}` and `{epochs}` pass these values to a configuration that takes arguments. Each trial's
variant, epochs and peak learning rate are also set as fields, in any case.
"""

import collections
import dataclasses
import functools
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from nfnet import cost
from nfnet.errors import UserError
from nfnet.foreign_files.numbers import is_number
from nfnet.foreign_files.regular_files import read_regular_file
from nfnet.variants import get_variant
from train.config.experiment import Experiment
from train.config.field_names import field_types
from train.config.files import load_experiment
from train.config.overrides import as_argument, nearest
from train.data.dataset import train_examples
from train.step.schedule import learning_rate_schedule, train_steps
from train.sweep.learning_rate_search import Cell
from train.sweep.trial import Trial, number_text, trial_name

SEARCH = "search"
TRIALS_MAX = 10_000
"""Most trials of a plan; each is a folder, and is checked before the first one is run."""
_BYTES_MAX = 2**20
_DOTS_PER_LINE_MAX = 500
SET_BY_SWEEP = (
  "name",
  "model.variant",
  "schedule.train_epochs",
  "schedule.train_steps",
  "optimizer.peak_learning_rate",
)
"""Fields of the configuration that differ between trials and therefore cannot be overridden."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A plan file.

  Attributes:
    config: configuration with its arguments, as --config takes it; may contain {variant} and
      {epochs}.
    variants: variants of the network.
    epochs: epoch budgets.
    learning_rates: peak learning rates; empty if they are searched.
    start_learning_rate: rate where the search begins; None if the rates are given.
    overrides: arguments --config.FIELD=VALUE for all trials.
  """

  config: str
  variants: tuple[str, ...]
  epochs: tuple[float, ...]
  learning_rates: tuple[float, ...]
  start_learning_rate: float | None
  overrides: tuple[str, ...]

  @property
  def is_search(self) -> bool:
    """True if finished trials decide which learning rates are run."""
    return self.start_learning_rate is not None

  @property
  def fixed(self) -> dict[str, Any]:
    """The values that all trials of a sweep folder must have in common, as JSON values."""
    return {"config": self.config, "overrides": list(self.overrides)}

  def arguments(self, variant: str, epochs: float, learning_rate: float) -> list[str]:
    """Returns the arguments of `train.pretrain` for a trial, without its workdir."""
    config = self.config.replace("{variant}", variant).replace("{epochs}", number_text(epochs))
    fields = {
      "name": trial_name(variant, epochs, learning_rate),
      "model.variant": variant,
      "schedule.train_epochs": number_text(epochs),
      "schedule.train_steps": None,
      "optimizer.peak_learning_rate": number_text(learning_rate),
    }
    return [
      f"--config={config}",
      *self.overrides,
      *(as_argument(field, value) for field, value in fields.items()),
    ]

  def trials(self) -> Iterator[Trial]:
    """Yields all trials whose learning rate is given; none for a search."""
    for variant, epochs, rate in itertools.product(self.variants, self.epochs, self.learning_rates):
      yield make_trial(self, variant, epochs, rate)

  def cells(self) -> dict[Cell, tuple[str, float]]:
    """Returns variant and epochs of each cell whose learning rate is searched."""
    cells = {}
    for variant, epochs in itertools.product(self.variants, self.epochs):
      trial = make_trial(self, variant, epochs, self.start_learning_rate)
      cells[trial.cell] = variant, epochs
    return cells


def load_plan(path: str) -> Plan:
  """Reads a plan file and checks all that can be checked without training.

  Raises:
    UserError: the file cannot be read, has an unknown field or an invalid value, or a trial could
      not be started with its configuration and data.
  """
  try:
    content = read_regular_file(path, _BYTES_MAX)
    # The parser's time grows with the square of the parts of a dotted name.
    if max(line.count(b".") for line in content.split(b"\n")) > _DOTS_PER_LINE_MAX:
      raise ValueError(f"a line has more than {_DOTS_PER_LINE_MAX} dots")
    fields = tomllib.loads(content.decode())
  except OSError as error:
    raise UserError(f"plan file {path!r} cannot be read: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    # Both encoding errors and TOML errors say where; nested brackets make the parser recurse.
    raise UserError(f"plan file {path!r} is not TOML: {error}") from error
  try:
    plan = _from_fields(fields)
    for variant, epochs in itertools.product(plan.variants, plan.epochs):
      for rate in plan.learning_rates or (plan.start_learning_rate,):
        make_trial(plan, variant, epochs, rate)
  except UserError as error:
    raise UserError(f"plan file {path!r}: {error}") from error
  except RecursionError as error:
    # Dotted names nest tables without a bracket.
    raise UserError(f"plan file {path!r}: tables are nested too deeply") from error
  return plan


def make_trial(plan: Plan, variant: str, epochs: float, learning_rate: float) -> Trial:
  """Returns one trial, after the checks that `train.pretrain` makes at its start.

  Raises:
    UserError: the configuration or the data do not allow it.
  """
  config, *overrides = plan.arguments(variant, epochs, learning_rate)
  name = trial_name(variant, epochs, learning_rate)
  try:
    experiment = load_experiment(config.removeprefix("--config="), overrides)
    if experiment.initial_weights is not None:
      raise UserError(
        "initial_weights is set, but a sweep pre-trains from random parameters; leave it out"
      )
    examples = train_examples(experiment.data)
    learning_rate_schedule(experiment, examples)
  except UserError as error:
    raise UserError(f"trial {name}: {error}") from error
  parameters, flops_per_image = _count(experiment)
  steps = train_steps(experiment, examples)
  images = steps * experiment.data.batch_size
  return Trial(
    name=name,
    variant=variant,
    epochs=epochs,
    learning_rate=learning_rate,
    parameters=parameters,
    steps=steps,
    images=images,
    compute_flops=flops_per_image * images,
  )


def _count(experiment: Experiment) -> tuple[int, int]:
  """Returns the number of parameters, and the FLOP of training on one image."""
  network = experiment.model
  images = experiment.data
  return _count_network(
    network.variant, images.num_classes, images.train_pixels, network.bottleneck
  )


@functools.cache
def _count_network(variant: str, num_classes: int, pixels: int, bottleneck: Any) -> tuple[int, int]:
  """Returns the counts of `_count`, computed only once for each network."""
  counted = cost.count(variant, num_classes=num_classes, pixels=pixels, bottleneck=bottleneck)
  return counted.parameters, counted.training_flops


def _from_fields(fields: Mapping[str, Any]) -> Plan:
  """Returns the plan in a TOML file's fields, checked."""
  known = ("config", "variants", "epochs", "learning_rates", "start_learning_rate", "overrides")
  for name in fields:
    if name not in known:
      raise UserError(f"unknown field {name!r}; nearest: {nearest(name, known)}")
  for name in known[:4]:
    if name not in fields:
      raise UserError(f"{name} is missing")
  config = fields["config"]
  if not isinstance(config, str) or not config:
    raise UserError(f"config={config!r}: must be a configuration, as --config takes it")
  rates, start = fields["learning_rates"], fields.get("start_learning_rate")
  if rates == SEARCH:
    if not _is_positive(start):
      raise UserError(
        f"start_learning_rate={start!r}: must be a number greater than 0, with "
        f'learning_rates="{SEARCH}"'
      )
  elif isinstance(rates, str):
    raise UserError(f'learning_rates={rates!r}: must be "{SEARCH}" or a list of numbers')
  elif start is not None:
    raise UserError(
      f'start_learning_rate={start!r}: is for learning_rates="{SEARCH}"; leave out one of the two'
    )
  plan = Plan(
    config=config,
    variants=_variants(fields["variants"]),
    epochs=_numbers("epochs", fields["epochs"]),
    learning_rates=() if rates == SEARCH else _numbers("learning_rates", rates),
    start_learning_rate=float(start) if rates == SEARCH else None,
    overrides=tuple(_overrides(fields.get("overrides", {}))),
  )
  count = len(plan.variants) * len(plan.epochs) * max(1, len(plan.learning_rates))
  if count > TRIALS_MAX:
    raise UserError(f"{count:,} trials, where {TRIALS_MAX:,} are the most: leave values out")
  return plan


def _variants(values: Any) -> tuple[str, ...]:
  """Returns the variants, checked."""
  if not isinstance(values, list) or not values:
    raise UserError(f'variants={values!r}: must be a list of variants, for example ["F0", "F3"]')
  for value in values:
    try:
      get_variant(str(value))
    except ValueError as error:
      raise UserError(f"variants: {error}") from error
  return _without_repeats("variants", values)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
  """Returns a list of positive numbers, checked."""
  if not isinstance(values, list) or not values:
    raise UserError(f"{name}={values!r}: must be a list of numbers, for example [0.5, 1]")
  for value in values:
    if not _is_positive(value):
      raise UserError(f"{name} has {value!r}: must be numbers greater than 0")
  return _without_repeats(name, [float(value) for value in values])


def _without_repeats(name: str, values: list[Any]) -> tuple[Any, ...]:
  """Returns the values; raises UserError if one repeats."""
  for value, times in collections.Counter(values).items():
    if times > 1:
      raise UserError(f"{name} has {value!r} twice; leave one out")
  return tuple(values)


def _is_positive(value: Any) -> bool:
  """Returns whether a TOML value is a finite number above 0."""
  return is_number(value) and value > 0


def _overrides(table: Any) -> Iterator[str]:
  """Yields the overrides as arguments, checked."""
  if not isinstance(table, dict):
    raise UserError(f"overrides={table!r}: must be a table, [overrides]")
  for field, value in _flat(table, ""):
    if field in SET_BY_SWEEP:
      raise UserError(f"overrides: {field} is set by the sweep for each trial; leave it out")
    if field not in field_types():
      raise UserError(
        f"overrides: unknown field {field!r}; nearest: {nearest(field, field_types())}"
      )
    if not isinstance(value, str | int | float):
      raise UserError(f"overrides: {field}={value!r}: must be text, a number, true or false")
    yield as_argument(field, value)


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
  """Yields dotted names and values; TOML reads `data.path = ...` as a table in a table."""
  for name, value in table.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value
