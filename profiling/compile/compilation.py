"""Compiles one training step for a TPU slice, or finds what the compiler said about it before."""

import dataclasses
import gzip
import json
import pathlib
from typing import Any

from profiling.compile.cache import run_worker
from profiling.compile.request import StepRequest
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.kernel_dumps import KernelProfile, read_profiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
  """A compiled training step.

  Attributes:
    hlo_text: optimized program.
    kernels: profiles of its Pallas kernels by the name of the instruction that calls one.
    lower_seconds: time of tracing and lowering.
    compile_seconds: time of the compiler's work.
    peak_memory_bytes: largest resident memory of the compiling process.
    hbm_bytes: memory that the step needs on each device: arguments + outputs - shared +
      temporaries. The compiler itself refuses only temporaries that do not fit.
    versions: versions of what compiled it, by distribution.
  """

  hlo_text: str
  kernels: dict[str, KernelProfile]
  lower_seconds: float
  compile_seconds: float
  peak_memory_bytes: int
  hbm_bytes: int
  versions: dict[str, str]


def compile_step(request: StepRequest, **options: Any) -> Compilation:
  """Compiles a training step, or finds what was compiled before.

  Args:
    request: which step.
    **options: cache and limits, see `profiling.compile.cache.run_worker`.

  Raises:
    UserError: as `run_worker`.
  """
  model = request.experiment.model
  folder, versions = run_worker(
    "profiling.compile.step_worker",
    request.to_json(),
    what=f"compiling {model.variant} for {request.topology}",
    dumps=model.kernels == "pallas",
    **options,
  )
  return read_compilation(folder, versions, parse_topology(request.topology).chip)


def read_compilation(folder: pathlib.Path, versions: dict[str, str], chip: Chip) -> Compilation:
  """Returns what a worker that compiles a step left.

  Args:
    folder: folder with the program, from `run_worker`.
    versions: versions of what compiled it, from `run_worker`.
    chip: chip that it was compiled for.
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
