"""Where the commands leave their figures."""

import json
import pathlib
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
