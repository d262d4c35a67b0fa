"""Finds a Python function of a user's that a flag names: MODULE:NAME or PATH.py:NAME.

    --source=my_module:my_source
    --logger=~/tools/my_loggers.py:make_logger

A module is found as an import finds it, or in the current folder. What its code raises is the
user's to correct, and is told in one line with its place (`raised`).
"""

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from nfnet.errors import UserError, escaped, quoted, short_text, shortened
from nfnet.system.paths import local_path

_REFERENCE = re.compile(r"(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
  """Returns whether text has the form of a reference and names nothing that exists as a file."""
  return bool(_REFERENCE.fullmatch(text)) and not os.path.lexists(text)


def load_function(flag: str, reference: str) -> Callable[..., Any]:
  """Returns the function or class that a reference leads to; its module is imported.

  The module's folder is appended to the import path, so that other processes which are started with
  this path find it too.

  Args:
    flag: name of the flag that holds the reference, for messages.
    reference: MODULE:NAME or PATH.py:NAME.

  Raises:
    UserError: the text has another form, there is no such module, its import fails, another one has
      its name, or it has nothing of this name that could be called.
  """
  where = f"--{flag}={shortened(reference)}"
  if not _REFERENCE.fullmatch(reference):
    raise UserError(f"{where}: must be MODULE:FUNCTION or PATH.py:FUNCTION")
  place, _, name = reference.rpartition(":")
  path = None
  if place.endswith(".py"):
    path = os.path.abspath(local_path(f"--{flag}", place))
    if not os.path.isfile(path):
      raise UserError(f"{where}: there is no file {shortened(place)}")
    folder, module_name = os.path.dirname(path), os.path.basename(path).removesuffix(".py")
  else:
    folder, module_name = os.getcwd(), place
  # Last, because a user's module may have the name of one that this project needs.
  if folder not in sys.path:
    sys.path.append(folder)
  # A file that was written a moment ago may be unknown to the import system.
  importlib.invalidate_caches()
  try:
    module = importlib.import_module(module_name)
  # A module may raise anything, and a SystemExit would end a run without a word.
  except (Exception, SystemExit) as error:
    # Its own absence, or that of a package that it is in, and not of one that it imports.
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module_name}.".startswith(f"{missing}."):
      raise UserError(
        f"{where}: Python finds no module {module_name} from this folder; go to the "
        f"folder of {module_name.partition('.')[0]}.py, or add it to PYTHONPATH"
      ) from error
    raise UserError(f"{where}: {module_name} raised {raised(error)}") from error
  found = getattr(module, "__file__", None)
  if path is not None and not (found and os.path.samefile(found, path)):
    raise UserError(
      f"{where}: another module has the name {quoted(module_name)} ({found}); rename the file"
    )
  function = getattr(module, name, None)
  if not callable(function):
    callables = [one for one, value in vars(module).items() if callable(value)]
    near = difflib.get_close_matches(name, callables, n=1)
    hint = f"; nearest: {near[0]}" if near else ""
    raise UserError(f"{where}: {place} has no function or class {name}{hint}")
  return function


def raised(error: BaseException) -> str:
  """Returns an error of the user's code and the line that raised it, to follow "raised"."""
  kind = type(error).__name__
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith("<frozen")
  ]
  # A syntax error's text has its own place.
  place = (
    f" ({escaped(frames[-1].filename)}, line {frames[-1].lineno})"
    if frames and not isinstance(error, SyntaxError)
    else ""
  )
  return f"{kind}: {short_text(error).removeprefix(f'{kind}: ')}{place}"
