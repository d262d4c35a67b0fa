r"""Measures real training steps on the devices that are present: TPU, GPU or CPU.

    python -m profiling.trace --config=FILE [--steps=10] [--folder=profile] [--json=OUT] \
        [--config.FIELD=VALUE ...]

Runs the training step that the configuration describes on random images that stay on the devices,
so that neither the input pipeline nor a data set is needed. It runs first without a profiler, to
measure the step time, and then under jax.profiler, to find out where the time goes. Every time
printed is measured. The profile stays in the folder for XProf (extra `profile`).
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from nfnet.command_line import run_main
from nfnet.system.paths import define_path
from profiling.compile import command_flags
from profiling.estimate.step_time import format_rows
from profiling.measure.training_step import Measurement, measure
from train.config.experiment import Experiment
from train.config.files import load_experiment
from train.config.overrides import parse_arguments
from train.report.output import print_and_write, write_json


def as_json(measurement: Measurement, experiment: Experiment) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
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
  """Formats the measurement for a terminal."""
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
      "Time of the operations in a step, added over threads that compute at once:",
      format_rows(measurement.rows, busy_seconds),
      "",
      f"The profile is in {folder}. To look at it: pip install tensorboard-plugin-profile, then",
      f"  xprof --logdir={folder}",
    ]
  )


def _define_flags() -> None:
  define_path(
    "config",
    None,
    "Python file of the experiment, or a name such as imagenet.",
    use="read",
    required=True,
  )
  flags.DEFINE_integer("steps", 10, "Steps to time; as many again are traced.", lower_bound=1)
  define_path("folder", "profile", "Folder for the profile.", use="write folder")
  command_flags.define_json()


def main(arguments: list[str]) -> None:
  """Measures what the configuration describes and prints it."""
  values = flags.FLAGS
  experiment = load_experiment(values.config, arguments[1:])
  folder = pathlib.Path(values.folder)
  measurement = measure(experiment, values.steps, folder)
  print_and_write(
    as_text(measurement, experiment, folder),
    lambda: write_json("json", values.json, as_json(measurement, experiment)),
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
