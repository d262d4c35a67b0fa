"""Compiles programs for TPUs that are not there: in a process with limits, and once only.

The compiler may take minutes and gigabytes and may abort its process; none of that must reach the
caller. Results are kept in a folder by a key of everything that they depend on.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from nfnet.errors import UserError
from profiling.compile.request import StepRequest
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.kernel_dumps import (
  DUMPS,
  KernelProfile,
  dump_arguments,
  keep,
  read_profiles,
)

TIME_LIMIT_SECONDS = 1800
MEMORY_LIMIT_BYTES = 16 * 10**9

# Decided before JAX is imported: there is no TPU to ask what it is, and several processes may load
# the compiler at once.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v4-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
_ROOT = pathlib.Path(__file__).parents[2]
_SOURCES = ("kernels", "nfnet", "train")
_WORKER_SOURCES = {
  "profiling.compile.step_worker": (
    "profiling/compile/step_worker.py",
    "profiling/compile/request.py",
  ),
  "profiling.compile.vit_worker": (
    "profiling/compile/vit_worker.py",
    "profiling/compile/step_worker.py",
    "profiling/compile/vision_transformer.py",
  ),
  "profiling.compile.op_worker": (
    "profiling/compile/op_worker.py",
    "profiling/compile/op_shapes.py",
    "profiling/compile/matmul_kernel.py",
  ),
  "profiling.compile.tile_worker": (
    "profiling/compile/tile_worker.py",
    "profiling/compile/op_worker.py",
    "profiling/compile/op_shapes.py",
    "profiling/compile/matmul_kernel.py",
  ),
}
_POLL_SECONDS = 0.2


class DeviceMemoryError(UserError):
  """The compiler refuses a program whose temporaries do not fit a device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
  """A compiled training step.

  Attributes:
    hlo_text: the optimized program.
    lower_seconds: tracing and lowering.
    compile_seconds: the compiler's work.
    peak_memory_bytes: resident, of the compiling process.
    hbm_bytes: that the step needs on each device: arguments + outputs - shared + temporaries. The
      compiler itself refuses only temporaries that do not fit.
    versions: of what compiled it.
    kernels: profiles of its Pallas kernels by the name of the instruction that calls one.
  """

  hlo_text: str
  kernels: dict[str, KernelProfile]
  lower_seconds: float
  compile_seconds: float
  peak_memory_bytes: int
  hbm_bytes: int
  versions: dict[str, str]


def compile_step(request: StepRequest, **limits: Any) -> Compilation:
  """Compiles a training step, or finds what was compiled before.

  Args:
    request: which step.
    **limits: see `run_worker`.

  Raises:
    UserError: as `run_worker`.
  """
  folder, versions = run_worker(
    "profiling.compile.step_worker",
    request,
    what=f"compiling {request.variant} for {request.topology}",
    dumps=request.kernels == "pallas",
    **limits,
  )
  return read_compilation(folder, versions, parse_topology(request.topology).chip)


def read_compilation(folder: pathlib.Path, versions: dict[str, str], chip: Chip) -> Compilation:
  """What a worker that compiles a step left, which `run_worker` returned.

  Args:
    folder: with the program.
    versions: of what compiled.
    chip: that it was compiled for.
  """
  result = json.loads((folder / "result.json").read_text())
  return Compilation(
    hlo_text=gzip.decompress((folder / "program.hlo.gz").read_bytes()).decode(),
    kernels=read_profiles(folder, chip),
    lower_seconds=result["lower_seconds"],
    compile_seconds=result["compile_seconds"],
    peak_memory_bytes=result["peak_memory_bytes"],
    hbm_bytes=result["argument_bytes"]
    + result["output_bytes"]
    - result["alias_bytes"]
    + result["temp_bytes"],
    versions=versions,
  )


def run_worker(
  module: str,
  request: Any,
  *,
  what: str,
  dumps: bool,
  cache: pathlib.Path | None = None,
  time_limit_seconds: float = TIME_LIMIT_SECONDS,
  memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> tuple[pathlib.Path, dict[str, str]]:
  """Runs a module of `profiling` that compiles, or finds what it left before.

  Args:
    module: run as `python -m MODULE REQUEST.json FOLDER`; writes FOLDER/result.json, or
      FOLDER/error.txt, one line, where the request or the compiler says no.
    request: a dataclass of what to compile.
    what: for messages and progress.
    dumps: the compiler is to write about Pallas kernels, to FOLDER/dumps. What is left there is
      about FOLDER/program.hlo.gz and kept with it (`profiling.compiler_text.kernel_dumps`).
    cache: folder of results; None is the user's cache folder.
    time_limit_seconds: after which the compiler is stopped.
    memory_limit_bytes: resident, likewise.

  Returns:
    The folder that the module wrote to, and the versions of what compiled. "peak_memory_bytes" of
    the process is added to its result.json.

  Raises:
    DeviceMemoryError: the compiler says that a device has too little memory.
    UserError: the request cannot be met, the compiler refuses or dies, or a limit is reached; one
      line with the reason.
  """
  versions = _versions()
  folder = (cache or _default_cache()) / _key(module, request, versions)
  if not (folder / "result.json").exists():
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished_") as unfinished:
      _run(
        module,
        request,
        pathlib.Path(unfinished),
        what,
        dumps,
        time_limit_seconds,
        memory_limit_bytes,
      )
      # Whoever compiles the same at the same time gets the same.
      shutil.rmtree(folder, ignore_errors=True)
      shutil.copytree(unfinished, folder)
  return folder, versions


def _run(
  module: str,
  request: Any,
  folder: pathlib.Path,
  what: str,
  dumps: bool,
  time_limit_seconds: float,
  memory_limit_bytes: int,
) -> None:
  request_path = folder / "request.json"
  request_path.write_text(json.dumps(dataclasses.asdict(request)))
  environment = {**os.environ, **_ENVIRONMENT}
  if dumps:
    (folder / DUMPS).mkdir()
    environment["LIBTPU_INIT_ARGS"] = " ".join(
      [environment.get("LIBTPU_INIT_ARGS", ""), dump_arguments(folder / DUMPS)]
    )
  with (folder / "log.txt").open("w") as log:
    worker = subprocess.Popen(
      [sys.executable, "-m", module, str(request_path), str(folder)],
      cwd=_ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
    )
  try:
    peak_memory_bytes = _watch(
      worker, what, folder / "log.txt", time_limit_seconds, memory_limit_bytes
    )
  finally:
    worker.kill()
    worker.wait()
  if (folder / "error.txt").exists():
    reason = (folder / "error.txt").read_text()
    error = DeviceMemoryError if "RESOURCE_EXHAUSTED" in reason else UserError
    raise error(f"{what}: {reason}")
  if worker.returncode or not (folder / "result.json").exists():
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.strip()]
    raise UserError(
      f"{what}: the compiling process ended with code {worker.returncode}"
      + (f": {lines[-1]}" if lines else "")
    )
  if dumps:
    program = folder / "program.hlo.gz"
    if program.exists():
      keep(folder / DUMPS, gzip.decompress(program.read_bytes()).decode(), folder)
    shutil.rmtree(folder / DUMPS)
  result = json.loads((folder / "result.json").read_text())
  result["peak_memory_bytes"] = peak_memory_bytes
  (folder / "result.json").write_text(json.dumps(result, indent=1))


def _watch(
  worker: subprocess.Popen,
  what: str,
  log: pathlib.Path,
  time_limit_seconds: float,
  memory_limit_bytes: int,
) -> int:
  """Waits for the worker and returns its peak resident memory in bytes."""
  started_seconds = time.monotonic()
  peak_bytes = 0
  # A progress line on a terminal; how long the compiler takes nobody knows before.
  with tqdm(bar_format="{desc} {elapsed}", desc=what, leave=False, disable=None) as line:
    while worker.poll() is None:
      time.sleep(_POLL_SECONDS)
      peak_bytes = max(peak_bytes, _peak_memory_bytes(worker.pid))
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
  """The newest "NUMBER/OF ..." in a worker's log, if it writes such lines."""
  lines = [line for line in log.read_text().splitlines() if re.match(r"\d+/\d+ ", line)]
  return f", {lines[-1]}" if lines else ""


def _peak_memory_bytes(process: int) -> int:
  try:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
  except OSError:
    return 0
  for line in status.splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  # A process that has ended and was not waited for has no memory left.
  return 0


def _versions() -> dict[str, str]:
  try:
    return {package: importlib.metadata.version(package) for package in _PACKAGES}
  except importlib.metadata.PackageNotFoundError as error:
    raise UserError(
      f"package {error.name} is not installed; the TPU compiler comes with: pip install -e '.[tpu]'"
    ) from error


def _default_cache() -> pathlib.Path:
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "nfnets-at-scale" / "compilations"


def _key(module: str, request: Any, versions: Mapping[str, str]) -> str:
  digest = hashlib.sha256()
  flags = {name: os.environ.get(name, "") for name in _FLAGS}
  digest.update(json.dumps([dataclasses.asdict(request), dict(versions), flags]).encode())
  for path in _source_files(module):
    digest.update(str(path.relative_to(_ROOT)).encode() + b"\0")
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _source_files(module: str) -> Iterator[pathlib.Path]:
  for source in (*_SOURCES, *_WORKER_SOURCES[module]):
    path = _ROOT / source
    # Python, and the tiles that kernels read.
    yield from (
      sorted(file for file in path.rglob("*") if file.suffix in (".py", ".json"))
      if path.is_dir()
      else [path]
    )
