"""Says what is a number among the values of JSON and TOML that somebody else may have written."""

from typing import Any

NUMBER_MAX = 1e300
"""Numbers are below this: a few added up are still in the range of floats, whether they are floats
or integers, which Python does not bound and JSON may hold with any number of digits."""
_COUNT_BITS_MAX = 63


def is_number(value: Any) -> bool:
  """Returns whether a value is a finite number that a float can hold (`NUMBER_MAX`).

  An integer is one too, since a number may be written without a point. True and false, which are
  integers to Python, are not.
  """
  return type(value) in (int, float) and abs(value) < NUMBER_MAX


def is_count(value: Any) -> bool:
  """Returns whether a value is an integer that may count something: from 0, in 64 bits."""
  return type(value) is int and 0 <= value < 2**_COUNT_BITS_MAX
