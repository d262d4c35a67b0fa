"""Compiles one training step for a TPU slice, or reads the result of an earlier compilation."""

import dataclasses
import gzip
import json
import pathlib
from typing import Any

from profiling.compile.cache import run_worker
from profiling.compile.request import StepRequest
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.kernel_profiles import KernelProfile, read_profiles


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
    coordinates: each device's place in the slice, by its number in the program; None where a chip
      is several devices.
    versions: versions of the compiling packages, by distribution.
  """

  hlo_text: str
  kernels: dict[str, KernelProfile]
  lower_seconds: float
  compile_seconds: float
  peak_memory_bytes: int
  hbm_bytes: int
  coordinates: tuple[tuple[int, ...], ...] | None
  versions: dict[str, str]


def compile_step(request: StepRequest, **options: Any) -> Compilation:
  """Compiles a training step, or reads the result of an earlier compilation.

  Args:
    request: step to compile.
    **options: cache and limits, see `profiling.compile.cache.run_worker`.

  Raises:
    UserError: see `run_worker`.
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
  """Reads the results of a worker that compiled a step.

  Args:
    folder: folder with the program, from `run_worker`.
    versions: versions of the compiling packages, from `run_worker`.
    chip: chip that the step was compiled for.
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
    coordinates=(
      tuple(tuple(place[: chip.links // 2]) for place in result["coordinates"])
      if chip.cores == chip.cores_per_device
      else None
    ),
    versions=versions,
  )
