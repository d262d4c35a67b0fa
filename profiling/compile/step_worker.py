"""Compiles one training step, in a process of its own; `profiling.compile.compilation` starts it.

    python -m profiling.compile.step_worker REQUEST.json FOLDER

Writes FOLDER/program.hlo.gz and FOLDER/result.json, or FOLDER/error.txt, one line, where the
request or the compiler says no.
"""

import dataclasses
import gzip
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from nfnet.errors import UserError
from profiling.compile.request import StepRequest, experiment_for
from profiling.compile.topology import describe_devices, parse_topology
from train.config.config_file import validate
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule
from train.step.sharding.batch import batch_sharding, check_train_batch
from train.step.sharding.mesh import make_mesh
from train.step.state import abstract_state
from train.step.train_step import make_train_step


def compile_step(request: StepRequest) -> tuple[dict, str]:
  """Compiles the step that `train.run.loop` runs, for the slice that the request names.

  Returns:
    Figures: lower_seconds, compile_seconds, argument_bytes, output_bytes, alias_bytes, temp_bytes
    (of one device); and the optimized program's text.

  Raises:
    UserError: the request cannot be met.
    jax.errors.JaxRuntimeError: the compiler refuses.
  """
  topology = parse_topology(request.topology)
  experiment = experiment_for(request, topology.chips)
  validate(experiment)
  mesh = make_mesh(
    describe_devices(topology), parameter_shards=experiment.parallelism.parameter_shards
  )
  check_train_batch(experiment, mesh, field="batch_per_chip x chips")
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples=10**6)
  optimizer = make_optimizer(experiment, rate, parameter_roles(model, mesh))

  images = experiment.data.batch_size

  def described(dtype, *shape):
    return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=batch_sharding(mesh))

  batch = {
    "image": described("uint8", request.pixels, request.pixels, 3),
    "labels": described("int32", 1),
    "weight": described("float32"),
    "position": described("int32"),
  }
  step = jax.jit(make_train_step(experiment, model, optimizer, rate, mesh), donate_argnums=0)
  return figures_and_text(step, abstract_state(experiment, model, optimizer, mesh), batch)


def figures_and_text(step: Any, state: Any, batch: Any) -> tuple[dict[str, float], str]:
  """Compiles a jitted step for the devices of its operands' shardings.

  Returns:
    As `compile_step`.
  """
  started_seconds = time.monotonic()
  lowered = step.lower(state, batch)
  lowered_seconds = time.monotonic()
  compiled = lowered.compile()
  compiled_seconds = time.monotonic()
  memory = compiled.memory_analysis()
  return {
    "lower_seconds": lowered_seconds - started_seconds,
    "compile_seconds": compiled_seconds - lowered_seconds,
    "argument_bytes": memory.argument_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes,
    "alias_bytes": memory.alias_size_in_bytes,
    "temp_bytes": memory.temp_size_in_bytes,
  }, compiled.as_text()


def serve(
  request_type: type,
  compile_request: Callable[[Any], tuple[dict[str, float], str]],
  request_path: str,
  folder: str,
) -> None:
  """Compiles what the file asks for and writes what came of it.

  Args:
    request_type: dataclass of the request.
    compile_request: gives figures and the program's text.
    request_path: of the request, JSON.
    folder: for the results.
  """
  # A compiler that aborts would leave gigabytes.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  request = request_type(**json.loads(pathlib.Path(request_path).read_text()))
  out = pathlib.Path(folder)
  try:
    result, text = compile_request(request)
  except (UserError, jax.errors.JaxRuntimeError) as error:
    (out / "error.txt").write_text(str(error).splitlines()[0])
    return
  with gzip.open(out / "program.hlo.gz", "wt", compresslevel=5) as file:
    file.write(text)
  (out / "result.json").write_text(
    json.dumps({"request": dataclasses.asdict(request), **result}, indent=1)
  )


if __name__ == "__main__":
  serve(StepRequest, compile_step, *sys.argv[1:])
