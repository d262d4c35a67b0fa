"""Requirements that the value of a field has to meet, and the error for a value that does not.

The units of numbers and the mark of fields that hold a path are here too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from nfnet.errors import UserError
from nfnet.variants import PIXELS_MAX


@dataclasses.dataclass(frozen=True)
class Requirement:
  """A requirement on a number, attached to a field as `Annotated[int, AT_LEAST_1]`.

  Attributes:
    words: the requirement as it follows "must be" in an error message.
    holds: predicate of the value; it is not called with None.
  """

  words: str
  holds: Callable[[float], bool]


@dataclasses.dataclass(frozen=True)
class Unit:
  """The unit of a number, attached to its field as `Annotated[int, Unit("steps")]`.

  Attributes:
    name: what the number counts or is measured in; empty for a pure number.
  """

  name: str


@dataclasses.dataclass(frozen=True)
class Path:
  """Marks a field that holds a path, here or in a bucket, as `Annotated[str, PATH]`."""


PATH = Path()
NO_UNIT = Unit("")
AT_LEAST_0 = Requirement("at least 0", lambda value: value >= 0)
AT_LEAST_1 = Requirement("at least 1", lambda value: value >= 1)
ABOVE_0 = Requirement("greater than 0", lambda value: value > 0)
ABOVE_0_UP_TO_1 = Requirement("greater than 0 and at most 1", lambda value: 0 < value <= 1)
FROM_0_BELOW_1 = Requirement("at least 0 and less than 1", lambda value: 0 <= value < 1)
FROM_0_TO_1 = Requirement("between 0 and 1", lambda value: 0 <= value <= 1)
PIXELS = Requirement(f"between 1 and {PIXELS_MAX}", lambda value: 1 <= value <= PIXELS_MAX)
PIXELS_OR_0 = Requirement(f"between 0 and {PIXELS_MAX}", lambda value: 0 <= value <= PIXELS_MAX)
UNSIGNED_32_BITS = Requirement("between 0 and 4294967295", lambda value: 0 <= value < 2**32)


def invalid(field: str, value: Any, requirement: str) -> UserError:
  """Returns the error for a field whose value does not meet a requirement.

  Args:
    field: dotted name of the field, or the argument that sets it.
    value: value that was given.
    requirement: the requirement, beginning with "must".
  """
  return UserError(f"{field}={value!r}: {requirement}")


def check_exactly_one(one: str, one_value: Any, other: str, other_value: Any) -> None:
  """Raises UserError unless exactly one of two fields has a value other than None."""
  if (one_value is None) == (other_value is None):
    raise UserError(
      f"{one}={one_value} and {other}={other_value}: exactly one of the two must be set; "
      "set the other to none"
    )
