"""Runs a command several times, importing what it needs once: that is most of what a start takes.

    python -m tests.profiling.forked_commands MODULE < ARGUMENTS.json

Each run is a process of its own, a copy of this one, whose `__main__` is the command.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from tests.repository import ROOT


class Ending(NamedTuple):
  """How a command ended.

  Attributes:
    returncode: its exit code.
    stderr: what it printed to standard error.
  """

  returncode: int
  stderr: str


def endings(
  module: str, command_lines: Sequence[Sequence[str]], environment: dict[str, str]
) -> dict[tuple[str, ...], Ending]:
  """Returns how a command ends, by its arguments.

  Args:
    module: dotted name of the command.
    command_lines: arguments of each run.
    environment: environment variables besides those of this process.
  """
  result = subprocess.run(
    [sys.executable, "-m", "tests.profiling.forked_commands", module],
    input=json.dumps([list(arguments) for arguments in command_lines]),
    env={**os.environ, **environment},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = [Ending(*fields) for fields in json.loads(result.stdout)]
  return {tuple(line): ending for line, ending in zip(command_lines, found, strict=True)}


def _end(module: str, arguments: Sequence[str]) -> Ending:
  with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as stdout:
    process_id = os.fork()
    if not process_id:
      os.dup2(stdout.fileno(), sys.stdout.fileno())
      os.dup2(stderr.fileno(), sys.stderr.fileno())
      _become(module, arguments)
    _, status = os.waitpid(process_id, 0)
    stderr.seek(0)
    return Ending(os.waitstatus_to_exitcode(status), stderr.read().decode())


def _become(module: str, arguments: Sequence[str]) -> None:
  """Runs the command and ends this process as it ends."""
  sys.argv = [module, *arguments]
  # Its imports stay.
  del sys.modules[module]
  code = 0
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  except SystemExit as end:
    code = end.code or 0
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


if __name__ == "__main__":
  importlib.import_module(sys.argv[1])
  print(json.dumps([_end(sys.argv[1], arguments) for arguments in json.load(sys.stdin)]))
