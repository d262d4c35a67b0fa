"""Reads the figures that the repository keeps in profiling/results."""

import json
import pathlib
from typing import Any

RESULTS = pathlib.Path(__file__).parents[1] / "results"
"""Folder of the figures that the repository keeps."""


def read_stored(name: str) -> Any:
  """Returns the content of one of these files.

  Args:
    name: name of a JSON file in `RESULTS`.
  """
  return json.loads((RESULTS / name).read_text(encoding="utf-8"))
