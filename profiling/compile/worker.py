"""Reads a request, compiles, and writes the result; all compiling processes share this.

    python -m WORKER REQUEST.json FOLDER

A worker writes FOLDER/result.json or, if the request is invalid or the compiler refuses, one line
in FOLDER/error.txt. `profiling.compile.worker_process` starts it.
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
    work: function from the request's fields and a folder for further files to the result's fields.
    request_path: JSON file with the request.
    folder: folder for the results.
  """
  # Otherwise a compiler that aborts would leave gigabytes of core dump.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  fields = json.loads(pathlib.Path(request_path).read_text())
  out = pathlib.Path(folder)
  try:
    result = work(fields, out)
  except (UserError, jax.errors.JaxRuntimeError) as error:
    (out / "error.txt").write_text(str(error).splitlines()[0])
    return
  (out / "result.json").write_text(json.dumps(result, indent=1))


def compile_step(step: Any, state: Any, batch: Any, folder: pathlib.Path) -> dict[str, Any]:
  """Compiles a jitted step for the devices of its operands' shardings and keeps the program.

  Args:
    step: jitted function of state and batch.
    state: described operand: a tree of `jax.ShapeDtypeStruct` with shardings.
    batch: described operand, of the same form.
    folder: folder in which to keep the program.

  Returns:
    lower_seconds, compile_seconds, the argument_bytes, output_bytes, alias_bytes and temp_bytes of
    one device, and the coordinates of the devices in the slice, in the order of the mesh.

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
    "coordinates": [
      device.coords for device in jax.tree.leaves(batch)[0].sharding.mesh.devices.flat
    ],
  }


def keep_program(hlo_text: str, folder: pathlib.Path, *, dumps: pathlib.Path) -> None:
  """Writes the optimized program, and keeps the compiler's texts about its Pallas kernels.

  Args:
    hlo_text: optimized program.
    folder: folder to write to.
    dumps: folder of the compiler's texts; it does not exist if these were not requested.
  """
  (folder / "program.hlo.gz").write_bytes(gzip.compress(hlo_text.encode(), compresslevel=5))
  if dumps.exists():
    kernel_dumps.keep(dumps, hlo_text, folder)
