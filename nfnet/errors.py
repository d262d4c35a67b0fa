"""Defines the error types whose messages are meant for the person at the terminal.

A message may quote text from a file that a stranger made: a name, a line, the words of a parser's
exception. `UserError` itself keeps such text from reaching the terminal as anything but text, and
`quoted`, `shortened` and `short_text` keep it short. `format_count` gives numbers of things a noun.

What a caller gives as an argument is checked by the functions called `check_...`, which raise a
ValueError of one line.
"""

import contextlib
import numbers
import operator
import unicodedata
from collections.abc import Callable, Sequence

MESSAGE_CHARACTERS_MAX = 2000
QUOTED_CHARACTERS_MAX = 80
_INTEGER_BITS_MAX = 128


class UserError(Exception):
  """Reports what a user can correct, in one line: what is wrong, its value, and what to do.

  Line ends, escape sequences and all other characters that are not printable are shown as
  backslash escapes, and the middle of a message of over `MESSAGE_CHARACTERS_MAX` is left out.
  """

  def __init__(self, message: object = ""):
    text = str(message)
    if len(text) > MESSAGE_CHARACTERS_MAX:
      half = MESSAGE_CHARACTERS_MAX // 2
      text = f"{text[:half]} ... {text[-half:]}"
    super().__init__(escaped(text))


class InUseError(UserError):
  """Reports that another process is using what this one needs, so that a later try may succeed."""


def escaped(text: str) -> str:
  """Returns text in which every character that is not printable is a backslash escape.

  These are the characters that `repr` escapes too: control characters, such as line ends and the
  start of a terminal's escape sequence, marks that change the direction of writing, and bytes of
  file names that are not UTF-8.
  """
  if text.isprintable():
    return text
  return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def quoted(value: object) -> str:
  """Returns a value from a file as an error message shows it: quoted, escaped and cut.

  Text that is not composed as Unicode recommends (NFC) may look like other text, so all of its
  characters beyond ASCII are escaped. Of a value that is neither text, a number, nor a list of
  these, only the type is shown: its text could be of any length.
  """
  if isinstance(value, str):
    shown = value[:QUOTED_CHARACTERS_MAX]
    return (repr if unicodedata.is_normalized("NFC", shown) else ascii)(shown) + _dots(value)
  if isinstance(value, list) and not any(isinstance(one, list) for one in value[:3]):
    return f"[{', '.join(map(quoted, value[:3]))}{', ...' if len(value) > 3 else ''}]"
  if isinstance(value, int) and value.bit_length() > _INTEGER_BITS_MAX:
    return f"an integer of {value.bit_length()} bits"
  if value is None or isinstance(value, bool | int | float):
    return repr(value)
  return f"a value of type {type(value).__name__}"


def shortened(text: str) -> str:
  """Returns text from a file as an error message shows it without quotation marks."""
  return escaped(text[:QUOTED_CHARACTERS_MAX]) + _dots(text)


def short_text(error: BaseException) -> str:
  """Returns the beginning of an error's text, which may be pages long, and its type.

  The type of a ValueError is left out: its text usually says everything.
  """
  text = str(error)[:1000]
  if type(error) is not ValueError or not text:
    text = f"{type(error).__name__}: {text}"
  text = " ".join(text.split())
  return escaped(text if len(text) <= 200 else f"{text[:200]} ...")


def format_count(number: int, noun: str) -> str:
  """Returns a number of things as text, for example "1 class" or "1,234 classes".

  Args:
    number: number of things.
    noun: singular of what they are called; its plural has an s or es.
  """
  ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
  return f"{number:,} {noun}{ending}"


def there_are(number: int, noun: str) -> str:
  """Returns that there are so many things: "there is 1 class" or "there are 1,234 classes"."""
  return f"there {'is' if number == 1 else 'are'} {format_count(number, noun)}"


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
  """Raises ValueError unless an argument is one of a few texts."""
  if not isinstance(value, str) or value not in choices:
    raise ValueError(f"{name}={quoted(value)}: must be {' or '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> None:
  """Raises ValueError unless an argument is True or False."""
  if not isinstance(value, bool):
    raise ValueError(f"{name}={quoted(value)}: must be True or False")


def checked_whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
  """Returns an argument that is a whole number, of Python, NumPy or JAX, from `low` to `high`.

  Raises:
    ValueError: it is none, or outside of its bounds.
  """
  try:
    number = operator.index(value)
  except TypeError:
    number = None
  if (
    number is None
    or isinstance(value, bool)
    or number < low
    or (high is not None and number > high)
  ):
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    shown = quoted(value if number is None or isinstance(value, bool) else number)
    raise ValueError(f"{name}={shown}: must be a whole number {bounds}")
  return number


def check_number(
  name: str, value: object, is_allowed: Callable[[float], bool], description: str
) -> None:
  """Raises ValueError unless an argument is a number within its bounds.

  Args:
    name: name of the argument.
    value: what the caller gives.
    is_allowed: whether a number is within the bounds; it may be NaN or infinite.
    description: what the argument must be, for the message, such as "a finite number above 0".
  """
  number = None
  if isinstance(value, numbers.Real) and not isinstance(value, bool):
    with contextlib.suppress(OverflowError):
      number = float(value)
  if number is None or not is_allowed(number):
    shown = quoted(value if number is None or isinstance(value, int) else number)
    raise ValueError(f"{name}={shown}: must be {description}")


def _dots(text: str) -> str:
  return "..." if len(text) > QUOTED_CHARACTERS_MAX else ""
