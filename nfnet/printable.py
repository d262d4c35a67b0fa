"""Makes names that others chose fit for a message: one line, no control characters, not long."""

import unicodedata

_CHARACTERS_MAX = 300
# Control characters, surrogates (which stand for bytes of file names that are not UTF-8), and the
# separators of lines and paragraphs. str.isprintable() also refuses joiners and spaces that names
# in Persian, Hindi or French need.
_CATEGORIES = frozenset(("Cc", "Cs", "Zl", "Zp"))
# Marks that make a terminal show the rest of a line in another order.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_printable(text: str) -> bool:
  """Returns whether a terminal shows a text on one line, and only as text."""
  return text.isprintable() or not any(map(_must_be_escaped, text))


def escape(text: str) -> str:
  """Returns a text with what a terminal would not show as text escaped, as in Python's literals."""
  if is_printable(text):
    return text
  return "".join(
    ascii(character)[1:-1] if _must_be_escaped(character) else character for character in text
  )


def printable(text: str) -> str:
  """Returns a text that can be part of a message: escaped, without the middle if it is long."""
  text = escape(text)
  if len(text) > _CHARACTERS_MAX:
    half = _CHARACTERS_MAX // 2
    text = f"{text[:half]}...{text[-half:]}"
  return text


def _must_be_escaped(character: str) -> bool:
  return unicodedata.category(character) in _CATEGORIES or character in _DIRECTIONS
