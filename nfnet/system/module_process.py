"""Runs a module of this project in a Python process of its own, whatever the current folder holds.

`python -m` looks for modules in the current folder first, where a user's own `train.py` would be
taken for this project's package `train`.
"""

import os
import pathlib
import sys

_ROOT = str(pathlib.Path(__file__).parents[2])


def module_command(module: str, *arguments: str) -> list[str]:
  """Returns the command that runs a module; it takes the variables of `module_environment`.

  Args:
    module: dotted name of the module.
    *arguments: arguments of the module.
  """
  # -P leaves the current folder out.
  return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
  """Returns this process's variables, with an import path that finds what this process finds.

  The entries have the order that they have here, so that no package hides one of the standard
  library. An empty entry, the current folder of an interactive Python, is left out.
  """
  paths = [os.path.abspath(path) for path in sys.path if path]
  if _ROOT not in paths:
    paths.insert(0, _ROOT)
  return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
