"""Tables of text for a terminal."""

from collections.abc import Sequence

from nfnet.errors import escaped


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
  """Returns left-aligned columns, two spaces apart, between rules.

  What is not printable in a cell, which may be a name from a file, is a backslash escape.

  Args:
    rows: cells of each row.
    header: cells of a first row that a rule separates from the others.
  """
  lines = [list(map(escaped, cells)) for cells in (*([header] if header else []), *rows)]
  widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  text = [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  ]
  if header:
    text.insert(1, rule)
  return "\n".join([rule, *text, rule])
