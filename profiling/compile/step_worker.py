"""Compiles the training step of an experiment, in a process of its own.

    python -m profiling.compile.step_worker REQUEST.json FOLDER

Writes FOLDER/program.hlo.gz, the compiler's texts about Pallas kernels, and the files that
`profiling.compile.worker` describes.
"""

import math
import pathlib
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from profiling.compile.request import StepRequest
from profiling.compile.topology import describe_devices, parse_topology
from profiling.compile.worker import compile_step, serve
from train.config.experiment import Experiment
from train.config.validation import validate
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule
from train.step.sharding.batch import batch_sharding, check_train_batch
from train.step.sharding.mesh import make_mesh
from train.step.state import abstract_state
from train.step.train_step import make_train_step

_ASSUMED_STEPS = 10**6


def assumed_train_examples(experiment: Experiment) -> int:
  """Returns how many images the training split is assumed to have, because no data set is read.

  The number only sets the length of the run, and that of a warm-up given in epochs. Both are
  constants in the learning-rate schedule; no operation of the step depends on them. If the length
  of the run is given in epochs, it is assumed to have a million steps. Otherwise an epoch is
  assumed to be one step, so that the assumption cannot make the warm-up longer than the run.
  """
  batch_size, epochs = experiment.data.batch_size, experiment.schedule.train_epochs
  return batch_size if epochs is None else math.ceil(_ASSUMED_STEPS * batch_size / epochs)


def describe_batch(experiment: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, dtypes and shardings of what `train.step.sharding.batch.put_batch` returns.

  Each image is assumed to have one label. MixUp and CutMix mix images of this same batch.
  """
  images, pixels = experiment.data.batch_size, experiment.data.train_pixels

  def described(dtype, *shape):
    return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=batch_sharding(mesh))

  return {
    "image": described("uint8", pixels, pixels, 3),
    "labels": described("int32", 1),
    "weight": described("float32"),
    "position": described("int32"),
  }


def step_and_operands(experiment: Experiment, mesh: Mesh) -> tuple[Any, Any, Any]:
  """Returns the jitted step that `train.run.loop` runs, and its described state and batch.

  Raises:
    UserError: the experiment is invalid, or its batch does not divide among the devices.
  """
  validate(experiment)
  check_train_batch(experiment, mesh)
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, assumed_train_examples(experiment))
  optimizer = make_optimizer(experiment, rate, parameter_roles(model, mesh))
  step = make_train_step(experiment, model, optimizer, rate, mesh)
  state = abstract_state(experiment, model, optimizer, mesh)
  return step, state, describe_batch(experiment, mesh)


def compile_request(fields: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Compiles the step of a request for its slice.

  Args:
    fields: see `StepRequest.to_json`.
    folder: folder in which to keep the program.

  Returns:
    The figures that `profiling.compile.worker.compile_step` returns.

  Raises:
    UserError: the request cannot be met.
    jax.errors.JaxRuntimeError: the compiler refuses the program.
  """
  request = StepRequest.from_json(fields)
  experiment = request.experiment
  mesh = make_mesh(
    describe_devices(parse_topology(request.topology)),
    parameter_shards=experiment.parallelism.parameter_shards,
  )
  return compile_step(*step_and_operands(experiment, mesh), folder)


if __name__ == "__main__":
  serve(compile_request, *sys.argv[1:])
