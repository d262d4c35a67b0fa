r"""Measures real training steps on the devices that are there: TPU, GPU or CPU.

    python -m profiling.trace --config=FILE [--steps=10] [--folder=profile] [--json=OUT] \
        [--config.FIELD=VALUE ...]

Runs the training step that the configuration describes on random images that stay on the devices,
so that neither the input pipeline nor a data set is needed: first without a profiler, for the time
of a step, then under jax.profiler, for where it goes. Every time printed is measured. The profile
stays in the folder for TensorBoard (extra `profile`).
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from nfnet.command_line import run_main
from nfnet.cost import count
from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from profiling.compiler_text.chips import chip_of_device_kind, core_hours
from profiling.estimate.step_time import Row, format_rows
from profiling.measure.trace_events import busy_share, module_name, read_events, rows_of
from train.config.config_file import load_experiment, parse_arguments
from train.config.experiment import Experiment
from train.report.output import write_json
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule
from train.step.sharding.batch import check_train_batch, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters
from train.step.state import initial_state
from train.step.train_step import make_train_step

_WARMUP_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """Training steps as they ran.

  Attributes:
    platform: "tpu", "gpu" or "cpu".
    device_kind: as JAX names it.
    devices: that computed together.
    cores_per_device: TensorCores of a TPU device, otherwise 1.
    images_per_step: of the global batch.
    training_flops_per_image: of the network: 6 x multiply-adds of a forward pass.
    steps: timed, and as many again traced.
    step_seconds: of a step without the profiler, from the first's start to the last's end.
    traced_step_seconds: of a step with the profiler.
    busy_share: of the traced time in which a device computed.
    rows: where the devices' time went, for one step and device.
    versions: of jax and jaxlib.
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
    """Over all devices."""
    return self.images_per_step / self.step_seconds

  @property
  def flops_per_second(self) -> float:
    """Of the network's arithmetic, over all devices."""
    return self.training_flops_per_image * self.images_per_second

  @property
  def chips(self) -> float | None:
    """TPU chips, or None where the devices are no TPUs of a known generation."""
    chip = chip_of_device_kind(self.device_kind)
    return chip and self.devices * self.cores_per_device / chip.cores

  @property
  def mfu(self) -> float | None:
    """Model FLOP utilization, or None as for `chips`."""
    chip = chip_of_device_kind(self.device_kind)
    return chip and self.flops_per_second / (chip.peak_flops * self.chips)

  @property
  def hours_per_million_images(self) -> float:
    """Core-hours on TPUs, device-hours elsewhere."""
    seconds = 1e6 / self.images_per_second
    chip = chip_of_device_kind(self.device_kind)
    return core_hours(chip, self.chips, seconds) if chip else self.devices * seconds / 3600


def measure(experiment: Experiment, steps: int, folder: pathlib.Path) -> Measurement:
  """Compiles the experiment's step, runs it and traces it.

  Args:
    experiment: validated; its data are not read.
    steps: to time, and then to trace.
    folder: for the profile.

  Raises:
    UserError: the batch does not divide among the devices, or the folder cannot be written.
  """
  data = experiment.data
  mesh = make_mesh()
  check_train_batch(experiment, mesh)
  model = make_model(experiment)
  # How many examples there are changes a constant of the schedule only.
  rate = learning_rate_schedule(experiment, train_examples=10**6)
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
  step = jax.jit(make_train_step(experiment, model, optimizer, rate, mesh), donate_argnums=0)
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
  # Python's own calls would be most of the profile.
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
    cores_per_device=getattr(device, "num_cores", 1) or 1,
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


def as_json(measurement: Measurement, experiment: Experiment) -> dict[str, Any]:
  """Everything that is printed, in base units."""
  return {
    "what": "measured",
    "experiment": experiment.name,
    "variant": experiment.model.variant,
    "pixels": experiment.data.train_pixels,
    "num_classes": experiment.data.num_classes,
    "compute_dtype": experiment.model.compute_dtype,
    "kernels": experiment.model.kernels,
    **dataclasses.asdict(measurement),
    "images_per_second": measurement.images_per_second,
    "flops_per_second": measurement.flops_per_second,
    "mfu": measurement.mfu,
    "hours_per_million_images": measurement.hours_per_million_images,
  }


def as_text(measurement: Measurement, experiment: Experiment, folder: pathlib.Path) -> str:
  """For a terminal."""
  model, data = experiment.model, experiment.data
  hours = "core-hours" if measurement.mfu is not None else "device-hours"
  mfu = "" if measurement.mfu is None else f", {measurement.mfu:.1%} of the chips' peak (MFU)"
  busy_seconds = sum(row.seconds for row in measurement.rows)
  return "\n".join(
    [
      f"NFNet-{model.variant}, {data.num_classes:,} classes, {data.train_pixels} px, "
      f"{data.batch_size} images a step, {model.compute_dtype}, kernels: {model.kernels}",
      f"Measured on {measurement.devices} x {measurement.device_kind} ({measurement.platform}), "
      f"images already on the device, {measurement.steps} steps:",
      f"  step             {measurement.step_seconds * 1e3:10.2f} ms "
      f"({measurement.traced_step_seconds * 1e3:.2f} with the profiler)",
      f"  images/s         {measurement.images_per_second:10.1f}",
      f"  FLOP/s           {measurement.flops_per_second:10.3g}{mfu}",
      f"  {hours:<16} {measurement.hours_per_million_images:10.3f} for a million images",
      f"  idle             {1 - measurement.busy_share:10.1%} of the traced time",
      "",
      "Time of the operations in a step, threads that compute at once added:",
      format_rows(measurement.rows, busy_seconds),
      "",
      f"The profile is in {folder}. To look at it: pip install -e '.[profile]', then",
      f"  tensorboard --logdir={folder}",
    ]
  )


def _define_flags() -> None:
  flags.DEFINE_string("config", None, "Python file that describes the experiment.", required=True)
  flags.DEFINE_integer("steps", 10, "To time, and as many again to trace.", lower_bound=1)
  flags.DEFINE_string("folder", "profile", "Folder for the profile.")
  flags.DEFINE_string("json", None, "Write everything to this file too.")


def main(arguments: list[str]) -> None:
  """Measures what the configuration describes and prints it."""
  values = flags.FLAGS
  experiment = load_experiment(values.config, arguments[1:])
  folder = pathlib.Path(values.folder)
  measurement = measure(experiment, values.steps, folder)
  print(as_text(measurement, experiment, folder))
  write_json("json", values.json, as_json(measurement, experiment))


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
