"""Times and traces the training step that an experiment describes, on the devices present."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from nfnet.cost import count
from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from profiling.compile.step_worker import assumed_train_examples
from profiling.compiler_text.chips import chip_of_device_kind
from profiling.estimate.core_hours import core_hours
from profiling.estimate.step_time import Row
from profiling.measure.trace_events import busy_share, module_name, read_events, rows_of
from train.config.experiment import Experiment
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule
from train.step.sharding.batch import check_train_batch, put_batch
from train.step.sharding.mesh import cores_of, make_mesh
from train.step.sharding.parameters import put_parameters
from train.step.state import initial_state
from train.step.train_step import make_train_step

_WARMUP_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """Holds what was measured of training steps.

  Attributes:
    platform: "tpu", "gpu" or "cpu".
    device_kind: JAX's name of the devices.
    devices: number of devices that computed together.
    cores_per_device: TensorCores of a TPU device, otherwise 1.
    images_per_step: number of images in the global batch.
    training_flops_per_image: FLOPs of the network: 6 x multiply-adds of a forward pass.
    steps: number of timed steps; the same number was traced.
    step_seconds: mean time of a step without the profiler.
    traced_step_seconds: mean time of a step with the profiler.
    busy_share: share of the traced time in which a device computed.
    rows: where the devices' time went, for one step and device.
    versions: versions of jax and jaxlib.
  """

  platform: str
  device_kind: str
  devices: int
  cores_per_device: int
  images_per_step: int
  training_flops_per_image: int
  steps: int
  step_seconds: float
  traced_step_seconds: float
  busy_share: float
  rows: tuple[Row, ...]
  versions: dict[str, str]

  @property
  def images_per_second(self) -> float:
    """Returns the images per second of all devices."""
    return self.images_per_step / self.step_seconds

  @property
  def flops_per_second(self) -> float:
    """Returns the FLOP/s of the network's arithmetic over all devices."""
    return self.training_flops_per_image * self.images_per_second

  @property
  def chips(self) -> float | None:
    """Returns the number of TPU chips, or None where the devices are not known TPUs."""
    chip = chip_of_device_kind(self.device_kind)
    return chip and self.devices * self.cores_per_device / chip.cores

  @property
  def mfu(self) -> float | None:
    """Returns the model FLOP utilization, or None where `chips` is None."""
    chip = chip_of_device_kind(self.device_kind)
    return chip and self.flops_per_second / (chip.peak_flops * self.chips)

  @property
  def hours_per_million_images(self) -> float:
    """Returns core-hours on TPUs, device-hours on other devices."""
    seconds = 1e6 / self.images_per_second
    chip = chip_of_device_kind(self.device_kind)
    return core_hours(chip, self.chips, seconds) if chip else self.devices * seconds / 3600


def measure(experiment: Experiment, steps: int, folder: pathlib.Path) -> Measurement:
  """Compiles the experiment's step, runs it and traces it.

  Args:
    experiment: validated experiment; its data are not read.
    steps: number of steps to time, and of steps to trace afterwards.
    folder: folder for the profile.

  Raises:
    UserError: the batch or the parameter shards do not divide among the devices, or the folder
      cannot be written.
  """
  data = experiment.data
  mesh = make_mesh(parameter_shards=experiment.parallelism.parameter_shards)
  check_train_batch(experiment, mesh)
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, assumed_train_examples(experiment))
  optimizer = make_optimizer(experiment, rate, parameter_roles(model, mesh))
  parameters = put_parameters(model, initial_parameters(model, experiment.seed), mesh)
  state = initial_state(experiment, optimizer, parameters)
  generator = np.random.default_rng(experiment.seed)
  size = (data.batch_size, data.train_pixels, data.train_pixels, 3)
  batch = put_batch(
    {
      "image": generator.integers(0, 256, size, dtype=np.uint8),
      "labels": generator.integers(0, data.num_classes, (data.batch_size, 1), dtype=np.int32),
      "weight": np.ones(data.batch_size, np.float32),
      "position": np.arange(data.batch_size),
    },
    mesh,
  )
  step = make_train_step(experiment, model, optimizer, rate, mesh)
  compiled = step.lower(state, batch).compile()

  def run(state: Any, count: int) -> tuple[Any, float]:
    started = time.perf_counter()
    for i in range(count):
      with jax.profiler.StepTraceAnnotation("train", step_num=i):
        state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    return state, (time.perf_counter() - started) / count

  state, _ = run(state, _WARMUP_STEPS)
  state, step_seconds = run(state, steps)
  options = jax.profiler.ProfileOptions()
  # Otherwise Python's calls would fill most of the profile.
  options.python_tracer_level = 0
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder), profiler_options=options):
      _, traced_step_seconds = run(state, steps)
  except OSError as error:
    raise UserError(f"--folder={folder} cannot be written: {error.strerror}") from error
  text = compiled.as_text()
  newest = max(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
  events = read_events(jax.profiler.ProfileData.from_file(str(newest)), module_name(text))
  device = jax.local_devices()[0]
  return Measurement(
    platform=device.platform,
    device_kind=device.device_kind,
    devices=jax.device_count(),
    cores_per_device=cores_of(device),
    images_per_step=data.batch_size,
    training_flops_per_image=count(
      experiment.model.variant,
      num_classes=data.num_classes,
      pixels=data.train_pixels,
      bottleneck=experiment.model.bottleneck,
    ).training_flops,
    steps=steps,
    step_seconds=step_seconds,
    traced_step_seconds=traced_step_seconds,
    busy_share=busy_share(events),
    rows=rows_of(events, text, steps * jax.local_device_count()),
    versions={"jax": jax.__version__, "jaxlib": jax.lib.__version__},
  )
