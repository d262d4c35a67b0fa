"""Formats a number of things as text, in the singular or the plural."""


def format_count(number: int, noun: str) -> str:
  """Returns a number of things as text, for example "1 class" or "1,234 classes".

  Args:
    number: number of things.
    noun: singular of what they are called; its plural has an s or es.
  """
  ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
  return f"{number:,} {noun}{ending}"
