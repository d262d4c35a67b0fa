"""Tables of text, for a terminal."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
  """Columns aligned to the left, two spaces apart; rules around it and below the header."""
  lines = [*([header] if header else []), *rows]
  widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  text = [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  ]
  if header:
    text.insert(1, rule)
  return "\n".join([rule, *text, rule])
