"""Prints the results of commands and writes them to files: JSON and plots.

Whether a file can be written is checked before the work, by the flags that name it
(`nfnet.system.paths.define_path`). Should writing fail nevertheless, the text has been printed.
"""

import contextlib
import csv
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nfnet.errors import UserError
from nfnet.foreign_files.regular_files import open_regular_to_write
from nfnet.system.paths import open_to_write

if TYPE_CHECKING:
  # Whoever has a figure has imported Matplotlib, which takes a third of a second.
  from matplotlib.figure import Figure


def print_and_write(text: str, *writes: Callable[[], object]) -> None:
  """Prints a result and then writes it to files, each even if another cannot be written.

  Args:
    text: the result for a terminal.
    *writes: functions without arguments that each write a file, such as calls of `write_json`.

  Raises:
    UserError: files cannot be written; the text has been printed and the other files are written.
  """
  print(text, flush=True)
  errors = []
  for write in writes:
    try:
      write()
    except UserError as error:
      errors.append(str(error))
  if errors:
    raise UserError("; ".join(errors))


def write_json(flag: str, path: str | None, value: Any) -> None:
  """Writes a value to a JSON file, unless there is no path.

  Args:
    flag: name of the flag that the path came from, for the error message.
    path: path of the file, or None or "".
    value: dictionaries, lists, strings and numbers.

  Raises:
    UserError: the file cannot be written.
  """
  if not path:
    return
  text = json.dumps(value, indent=1) + "\n"
  with open_to_write(flag, path) as file:
    file.write(text.encode())


def write_csv(flag: str, path: str | None, rows: Sequence[Sequence[str]]) -> None:
  """Writes rows of text to a CSV file in UTF-8, unless there is no path.

  Args:
    flag: name of the flag that the path came from, for the error message.
    path: path of the file, or None or "".
    rows: cells of each line.

  Raises:
    UserError: the file cannot be written.
  """
  if not path:
    return
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  with open_to_write(flag, path) as file:
    file.write(text.getvalue().encode(errors="backslashreplace"))


@contextlib.contextmanager
def importing_matplotlib() -> Iterator[None]:
  """Explains why Matplotlib cannot be imported, around the import of a module that draws.

  Raises:
    UserError: there is no folder that can be written for its cache, as on a read-only system.
  """
  try:
    yield
  except OSError as error:
    raise UserError(f"plots cannot be drawn: {error}") from error


def save_figure(flag: str, path: str | None, draw: "Callable[[], Figure | None]") -> None:
  """Draws a plot and writes it to a PNG file, unless there is no path or nothing to show.

  Args:
    flag: name of the flag that the path came from, for the error message.
    path: path of the file, or None or "".
    draw: function without arguments that returns the plot, or None. It imports Matplotlib.

  Raises:
    UserError: the file cannot be written, or Matplotlib cannot be imported.
  """
  if not path:
    return
  with importing_matplotlib():
    figure = draw()
  if figure is None:
    return
  with open_to_write(flag, path) as file:
    figure.savefig(file, format="png")


def save_figures(
  label: str, folder: str | os.PathLike[str], figures: "Mapping[str, Figure | None]"
) -> list[pathlib.Path]:
  """Writes plots to PNG files in a folder, which is created if necessary.

  Args:
    label: the folder as an error message names it, such as "--plots=DIR".
    folder: path of the folder.
    figures: plots by the name of the file without its suffix; a plot that is None is left out.

  Returns:
    The files that were written.

  Raises:
    UserError: a file cannot be written.
  """
  written = []
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
      if figure is not None:
        written.append(pathlib.Path(folder) / f"{name}.png")
        # A pipe in its place might have no reader.
        with open_regular_to_write(written[-1], "wb") as file:
          figure.savefig(file, format="png")
  except OSError as error:
    raise UserError(f"{label} cannot be written: {error.strerror}") from error
  return written
