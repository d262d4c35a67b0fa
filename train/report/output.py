"""Writes the results of commands: JSON files and plots."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nfnet.errors import UserError


def write_json(flag: str, path: str | None, value: Any) -> None:
  """Writes a value to a file, unless there is no path.

  Args:
    flag: that the path came from, for the error.
    path: of the file.
    value: of dictionaries, lists, strings and numbers.

  Raises:
    UserError: the file cannot be written.
  """
  if not path:
    return
  try:
    pathlib.Path(path).write_text(json.dumps(value, indent=1) + "\n")
  except OSError as error:
    raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from error


def save_figure(flag: str, path: str | None, figure: Figure) -> None:
  """Writes a picture to a PNG file, unless there is no path.

  Args:
    flag: that the path came from, for the error.
    path: of the file.
    figure: drawn.

  Raises:
    UserError: the file cannot be written.
  """
  if not path:
    return
  try:
    figure.savefig(path, format="png")
  except OSError as error:
    raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from error


def save_plots(folder: str | pathlib.Path, plots: Mapping[str, Figure]) -> list[pathlib.Path]:
  """Writes each plot to FOLDER/NAME.png.

  Args:
    folder: folder of the plots, created if needed.
    plots: figures by name.

  Returns:
    Paths of the files written.

  Raises:
    UserError: the plots cannot be written.
  """
  folder, written = pathlib.Path(folder), []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in plots.items():
      written.append(folder / f"{name}.png")
      figure.savefig(written[-1])
  except OSError as error:
    raise UserError(f"plots cannot be written to {str(folder)!r}: {error.strerror}") from error
  return written
