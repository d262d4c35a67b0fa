"""Shared by all compiling processes: reading the request, compiling, and writing what comes of it.

    python -m WORKER REQUEST.json FOLDER

A worker writes FOLDER/result.json, or FOLDER/error.txt, one line, where the request or the compiler
says no. `profiling.compile.worker_process` starts it.
"""

import gzip
import json
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import jax

from nfnet.errors import UserError
from profiling.compiler_text import kernel_dumps


def serve(
  work: Callable[[dict[str, Any], pathlib.Path], dict[str, Any]], request_path: str, folder: str
) -> None:
  """Carries out a request and writes the result or the error.

  Args:
    work: takes the request's fields and the folder for further files, returns the result's fields.
    request_path: file of the request, JSON.
    folder: folder for the results.
  """
  # A compiler that aborts would leave gigabytes.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  fields = json.loads(pathlib.Path(request_path).read_text())
  out = pathlib.Path(folder)
  try:
    result = work(fields, out)
  except (UserError, jax.errors.JaxRuntimeError) as error:
    (out / "error.txt").write_text(str(error).splitlines()[0])
    return
  (out / "result.json").write_text(json.dumps(result, indent=1))


def compile_step(step: Any, state: Any, batch: Any, folder: pathlib.Path) -> dict[str, float]:
  """Compiles a jitted step for the devices of its operands' shardings and keeps the program.

  Args:
    step: jitted function of state and batch.
    state: described operand: a tree of `jax.ShapeDtypeStruct` with shardings.
    batch: described operand, likewise.
    folder: folder to keep the program in.

  Returns:
    lower_seconds and compile_seconds, and of one device argument_bytes, output_bytes, alias_bytes
    and temp_bytes.

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses the program.
  """
  started_seconds = time.monotonic()
  lowered = step.lower(state, batch)
  lowered_seconds = time.monotonic()
  compiled = lowered.compile()
  compiled_seconds = time.monotonic()
  keep_program(compiled.as_text(), folder, dumps=folder / kernel_dumps.DUMPS)
  memory = compiled.memory_analysis()
  return {
    "lower_seconds": lowered_seconds - started_seconds,
    "compile_seconds": compiled_seconds - lowered_seconds,
    "argument_bytes": memory.argument_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes,
    "alias_bytes": memory.alias_size_in_bytes,
    "temp_bytes": memory.temp_size_in_bytes,
  }


def keep_program(hlo_text: str, folder: pathlib.Path, *, dumps: pathlib.Path) -> None:
  """Writes the optimized program, and what the compiler wrote about its Pallas kernels.

  Args:
    hlo_text: optimized program.
    folder: folder to write to.
    dumps: folder that the compiler wrote to; it does not exist where it was not asked to write.
  """
  (folder / "program.hlo.gz").write_bytes(gzip.compress(hlo_text.encode(), compresslevel=5))
  if dumps.exists():
    kernel_dumps.keep(dumps, hlo_text, folder)
