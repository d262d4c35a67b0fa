"""Runs a compiling process under limits of time and memory.

The compiler may take minutes and gigabytes and may abort its process; none of that must reach the
caller.
"""

import json
import pathlib
import re
import shutil
import subprocess
import time
from typing import Any

from tqdm import tqdm

from nfnet.errors import UserError
from nfnet.system.module_process import module_command, module_environment
from profiling.compiler_text.kernel_dumps import DUMPS, dump_arguments

TIME_LIMIT_SECONDS = 1800
MEMORY_LIMIT_BYTES = 16 * 10**9

ROOT = pathlib.Path(__file__).parents[2]
"""Folder of the top-level packages."""

# These must be set before JAX is imported: there is no TPU that could say what it is, and several
# processes may load the compiler at once.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v4-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_POLL_SECONDS = 0.2


class DeviceMemoryError(UserError):
  """The compiler refuses a program whose temporaries do not fit a device."""


def run_worker_process(
  module: str,
  request: dict[str, Any],
  folder: pathlib.Path,
  *,
  what: str,
  dumps: bool,
  time_limit_seconds: float = TIME_LIMIT_SECONDS,
  memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> None:
  """Runs a module that compiles (see `profiling.compile.worker`) and waits for it.

  Args:
    module: dotted name of the worker.
    request: JSON values for the worker.
    folder: empty folder for the results. "peak_memory_bytes" of the process is added to its
      result.json.
    what: name of the work in messages and progress.
    dumps: whether the compiler writes texts about Pallas kernels to FOLDER/dumps. The worker keeps
      those that belong to its programs; the folder is removed afterwards.
    time_limit_seconds: time after which the compiler is stopped.
    memory_limit_bytes: resident memory above which the compiler is stopped.

  Raises:
    DeviceMemoryError: the compiler says that a device has too little memory.
    UserError: the request cannot be met, the compiler refuses or dies, or a limit is reached; the
      message gives the reason in one line.
  """
  request_path = folder / "request.json"
  request_path.write_text(json.dumps(request, indent=1))
  environment = _environment()
  if dumps:
    (folder / DUMPS).mkdir()
    environment["LIBTPU_INIT_ARGS"] = " ".join(
      [environment.get("LIBTPU_INIT_ARGS", ""), dump_arguments(folder / DUMPS)]
    )
  with (folder / "log.txt").open("w") as log:
    process = subprocess.Popen(
      module_command(module, str(request_path), str(folder)),
      cwd=ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
    )
  try:
    peak_memory_bytes = _watch(
      process, what, folder / "log.txt", time_limit_seconds, memory_limit_bytes
    )
  finally:
    process.kill()
    process.wait()
  if (folder / "error.txt").exists():
    reason = (folder / "error.txt").read_text()
    error = DeviceMemoryError if "RESOURCE_EXHAUSTED" in reason else UserError
    raise error(f"{what}: {reason}")
  result_path = folder / "result.json"
  if process.returncode or not result_path.exists():
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.strip()]
    raise UserError(
      f"{what}: the compiling process ended with code {process.returncode}"
      + (f": {lines[-1]}" if lines else "")
    )
  shutil.rmtree(folder / DUMPS, ignore_errors=True)
  result = json.loads(result_path.read_text())
  result["peak_memory_bytes"] = peak_memory_bytes
  result_path.write_text(json.dumps(result, indent=1))


def _environment() -> dict[str, str]:
  """Returns the environment variables of the worker.

  JAX's own settings are not inherited: they change what is compiled, and are not in the cache's
  key. JAX's persistent compilation cache would also keep the compiler from writing about kernels.
  """
  inherited = {
    name: value for name, value in module_environment().items() if not name.startswith("JAX_")
  }
  return {**inherited, **ENVIRONMENT}


def _watch(
  process: subprocess.Popen,
  what: str,
  log: pathlib.Path,
  time_limit_seconds: float,
  memory_limit_bytes: int,
) -> int:
  """Waits for the worker and returns its peak resident memory in bytes."""
  started_seconds = time.monotonic()
  peak_bytes = 0
  # On a terminal, this line shows the elapsed time; the compiler does not say how much is left.
  with tqdm(bar_format="{desc} {elapsed}", desc=what, leave=False, disable=None) as line:
    while process.poll() is None:
      time.sleep(_POLL_SECONDS)
      peak_bytes = max(peak_bytes, _peak_memory_bytes(process.pid))
      line.set_description_str(f"{what}{_progress(log)}, {peak_bytes / 1e9:.1f} GB,")
      if peak_bytes > memory_limit_bytes:
        raise UserError(
          f"{what}: the compiler wanted more than {memory_limit_bytes / 1e9:g} GB of memory; "
          "raise --memory_limit_gb"
        )
      if time.monotonic() - started_seconds > time_limit_seconds:
        raise UserError(
          f"{what}: the compiler took more than {time_limit_seconds:g} seconds; "
          "raise --time_limit_seconds"
        )
  return peak_bytes


def _progress(log: pathlib.Path) -> str:
  """Returns the newest "NUMBER/OF ..." in a worker's log, if it writes such lines."""
  lines = [line for line in log.read_text().splitlines() if re.match(r"\d+/\d+ ", line)]
  return f", {lines[-1]}" if lines else ""


def _peak_memory_bytes(process_id: int) -> int:
  """Returns the peak resident memory of a process; 0 where it has ended."""
  try:
    status = pathlib.Path(f"/proc/{process_id}/status").read_text()
  except OSError:
    return 0
  for line in status.splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  # A zombie, which has ended but was not waited for, has no memory.
  return 0
