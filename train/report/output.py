"""Writes the results of commands to files: JSON and plots."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nfnet.errors import UserError


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
  try:
    pathlib.Path(path).write_text(json.dumps(value, indent=1) + "\n")
  except OSError as error:
    raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from error


def save_figure(flag: str, path: str | None, figure: Figure) -> None:
  """Writes a plot to a PNG file, unless there is no path.

  Args:
    flag: name of the flag that the path came from, for the error message.
    path: path of the file, or None or "".
    figure: the plot.

  Raises:
    UserError: the file cannot be written.
  """
  if not path:
    return
  try:
    figure.savefig(path, format="png")
  except OSError as error:
    raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from error


def save_figures(
  label: str, folder: str | os.PathLike[str], figures: Mapping[str, Figure | None]
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
        figure.savefig(written[-1])
  except OSError as error:
    raise UserError(f"{label} cannot be written: {error.strerror}") from error
  return written
