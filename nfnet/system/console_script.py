"""The program `nfnets`: starts each command of this project by its name, from any folder.

    nfnets COMMAND [--FLAG=VALUE ...]
    nfnets --help

A command is a module that calls `run_main`, and is called by the last part of the module's name:
`nfnets pretrain` runs what `python -m train.pretrain` runs. Names and descriptions are read from
the files, so the list is never stale and nothing is imported for it. Unlike `python -m`, the
program finds its modules where it is installed, whatever the current folder holds.
"""

import ast
import dataclasses
import difflib
import functools
import os
import pathlib
import re
import runpy
import sys

import nfnet
from nfnet.errors import UserError, quoted
from nfnet.system.interrupts import end_in_one_line
from nfnet.system.standard_streams import keep_running_without_readers

PROGRAM = "nfnets"

_PACKAGES = ("nfnet", "train", "profiling")
_ROOT = pathlib.Path(__file__).parents[2]
_COMMAND = re.compile(r"^  run_main\(main\b", re.MULTILINE)
_MODULE_RUN = re.compile(r"python -m ([\w.]*\w)")
_EXIT_USER_ERROR = 2


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of this project.

  Attributes:
    module: dotted name of its module, as `python -m` takes it.
    source: source of the module.
  """

  module: str
  source: str

  @property
  def name(self) -> str:
    """Its name after `nfnets`."""
    return self.module.rpartition(".")[2]


@functools.cache
def commands() -> tuple[Command, ...]:
  """Returns all commands, in the order of their packages."""
  found = []
  for package in _PACKAGES:
    for path in sorted((_ROOT / package).rglob("*.py")):
      source = path.read_text(encoding="utf-8")
      if _COMMAND.search(source):
        parts = path.relative_to(_ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__main__" else parts)
        found.append(Command(module, source))
  return tuple(found)


def as_started(text: str) -> str:
  """Returns a text with the commands in it written as they would be started in this process.

  Args:
    text: text with commands `python -m MODULE`. They become `nfnets NAME` in a process that
      `nfnets` has started.
  """
  if not _started:
    return text
  names = {command.module: command.name for command in commands()}
  return _MODULE_RUN.sub(
    lambda run: f"{PROGRAM} {names[run[1]]}" if run[1] in names else run[0], text
  )


def main() -> None:
  """Runs the command that the first argument names, or lists the commands."""
  # An interpreter that a command starts does not look for modules in the current folder either.
  os.environ["PYTHONSAFEPATH"] = "1"
  name, *arguments = sys.argv[1:] or ["--help"]
  if name == "help" and arguments:
    name, arguments = arguments[0], ["--help"]
  if name in ("--help", "-h", "help", "--version", "-V", "version"):
    keep_running_without_readers(None)
    print(_overview() if name in ("--help", "-h", "help") else nfnet.__version__)
    return
  modules = {command.name: command.module for command in commands()}
  # The name after `python -m` is one, too.
  module = name if name in modules.values() else modules.get(name.replace("-", "_"))
  if module is None:
    near = difflib.get_close_matches(name[:100], modules, n=3, cutoff=0.0)
    error = UserError(
      f"there is no command {quoted(name)}; nearest: {', '.join(near)}; "
      f"`{PROGRAM} --help` lists all"
    )
    print(f"error: {error}", file=sys.stderr)
    sys.exit(_EXIT_USER_ERROR)
  _started.append(module)
  end_in_one_line()
  sys.argv[:] = [PROGRAM, *arguments]
  runpy.run_module(module, run_name="__main__", alter_sys=True)


_started: list[str] = []
"""The module that `main` runs in this process, if it runs one."""


def _overview() -> str:
  """Returns the list of all commands, with a line for each."""
  width = max(len(command.name) for command in commands()) + 2
  lines = [
    f"usage: {PROGRAM} COMMAND [--FLAG=VALUE ...]",
    f"       {PROGRAM} COMMAND --help     shows what the command is for, with its flags",
    f"       {PROGRAM} --version",
  ]
  for package in _PACKAGES:
    lines += ["", f"{package}:"]
    for command in commands():
      if command.module.partition(".")[0] == package:
        lines.append(f"  {command.name:{width}}{_summary(command.source)}")
  return "\n".join(lines)


def _summary(source: str) -> str:
  """Returns the first line of a module's docstring."""
  return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
