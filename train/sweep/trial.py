"""Trials: the definition of one run of a sweep, with its name and its size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nfnet.foreign_files.numbers import is_number
from train.sweep.learning_rate_search import Cell

_CHARACTERS_MAX = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """The definition of one run, and how large it is.

  Attributes:
    name: name made of variant, epochs and learning rate.
    variant: variant of the network.
    epochs: epoch budget.
    learning_rate: peak learning rate.
    parameters: number of trained scalars.
    steps: number of steps of the whole run.
    images: number of images trained on in all steps.
    compute_flops: FLOP of all steps: 6 x multiply-adds at the training resolution x images.
  """

  name: str
  variant: str
  epochs: float
  learning_rate: float
  parameters: int
  steps: int
  images: int
  compute_flops: int

  @property
  def cell(self) -> Cell:
    """The trial's cell in the search for learning rates."""
    return Cell(parameters=self.parameters, epochs=self.epochs)

  @property
  def order(self) -> tuple[float, ...]:
    """A sort key that puts small and short trials first, because they bound larger cells."""
    return (self.compute_flops, self.parameters, self.epochs, -self.learning_rate)


def trial_from_json(fields: Mapping[str, Any]) -> Trial:
  """Returns the trial whose fields `dataclasses.asdict` has made.

  Raises:
    ValueError: the fields are not those of a trial.
  """
  types = {field.name: field.type for field in dataclasses.fields(Trial)}
  if fields.keys() != types.keys():
    raise ValueError("does not have the fields of a trial")
  for name, value in fields.items():
    if types[name] is str:
      # These reach terminals and results.csv.
      is_valid = (
        isinstance(value, str) and value.isprintable() and 0 < len(value) <= _CHARACTERS_MAX
      )
    else:
      is_valid = is_number(value) and value > 0 and isinstance(value, types[name] | int)
    if not is_valid:
      raise ValueError(f"has a wrong {name}")
  return Trial(**fields)


def trial_name(variant: str, epochs: float, learning_rate: float) -> str:
  """Returns a name such as F0_epochs-0.5_rate-0.4; different values give different names."""
  return f"{variant}_epochs-{number_text(epochs)}_rate-{number_text(learning_rate)}"


def number_text(number: float) -> str:
  """Returns the shortest text that parses back to the same number."""
  return repr(float(number)).removesuffix(".0")
