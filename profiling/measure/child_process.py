"""Runs a measurement in a process of its own, which prints or writes one line of JSON."""

import json
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def last_line(output: str) -> str:
  """Returns the last line of a process's output."""
  return output.splitlines()[-1]


def run_for_json(
  command: Sequence[str],
  *,
  folder: pathlib.Path | None = None,
  environment: Mapping[str, str] | None = None,
  timeout_seconds: float | None = None,
  json_text: Callable[[str], str] = last_line,
) -> dict[str, Any]:
  """Returns the figures of a process, or {"not_measured": why} if it fails or takes too long.

  Args:
    command: program and arguments.
    folder: working directory of the process; None means that of this process.
    environment: environment of the process; None means that of this process.
    timeout_seconds: time after which the process is killed; None means no limit.
    json_text: function that returns the JSON text, given what the process printed.

  Raises:
    OSError: the program cannot be started.
  """
  try:
    process = subprocess.run(
      command,
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
      timeout=timeout_seconds,
    )
  except subprocess.TimeoutExpired:
    return {"not_measured": f"no figures after {timeout_seconds:.0f} s"}
  if process.returncode:
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    return {"not_measured": lines[-1] if lines else f"exit code {process.returncode}"}
  return json.loads(json_text(process.stdout))
