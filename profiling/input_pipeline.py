r"""Compares the speed of this project's input pipeline with tf.data, timm and Pillow.

    python -m profiling.input_pipeline [--images=FOLDER] [--python=INTERPRETER] [--json=OUT]

All of them decode, crop and augment the same JPEGs on the same cores. They run one after another,
in processes of their own, in several rounds, each of which begins with a different pipeline. This
project's batches are those of training (`train.data.pipeline.train_batches`, one worker process per
core), from a data set that is prepared first. For information, they are also measured in threads of
the training process.

This project does not depend on TensorFlow, PyTorch or timm: --python names an interpreter that has
them. Pipelines whose packages it lacks are "not measured".

Without --images, the images are 500 x 375 windows of the two photographs in scikit-learn, with the
110 kB that an image of ImageNet has.
"""

import functools
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from nfnet.foreign_files.json_text import FILE_BYTES_MAX, check_structure, read_json_object
from nfnet.system.paths import define_path
from nfnet.variants import PIXELS_MAX
from profiling.compile import command_flags
from profiling.estimate.stored import RESULTS
from profiling.measure.input_comparison import (
  CHIPS_PER_HOST,
  HOST_VCPUS,
  cores_needed,
  measure,
  processor_name,
  run_rounds,
  summarize,
)
from profiling.measure.input_pipelines import OURS, OURS_IN_THREADS, PIPELINES
from profiling.measure.jpeg_folders import generate_images, link_images, prepare
from train.data import record_reader
from train.report.output import print_and_write, write_json
from train.report.table import format_table

_GENERATED_IMAGES = 1024


def step_speed(path: str) -> float | None:
  """Returns images/s/chip of a file that `profiling.step --json` wrote; None if it is missing.

  Raises:
    UserError: `profiling.step --json` did not write the file.
  """
  try:
    fields = read_json_object(path, FILE_BYTES_MAX)
    check_structure(fields, {"estimated": {"images_per_second_per_chip": float}})
  except FileNotFoundError:
    return None
  except OSError as error:
    raise UserError(f"--step_json={path} cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise UserError(
      f"--step_json={path} is not what `python -m profiling.step --json` writes"
    ) from error
  return fields["estimated"]["images_per_second_per_chip"]


def as_text(result: Mapping[str, Any]) -> str:
  """Formats the comparison for a terminal."""
  table = []
  for pipeline, speed in result["speeds"].items():
    if "not_measured" in speed:
      table.append((pipeline, f"not measured: {speed['not_measured']}", ""))
    else:
      table.append(
        (
          pipeline,
          _spread_text(speed["images_per_cpu_second"], "{:.0f}"),
          _spread_text(speed["images_per_second_per_core"], "{:.0f}"),
        )
      )
  machine, files = result["machine"], result["images"]
  lines = [
    f"Training images of {result['pixels']} px, {result['cores']} cores ({machine['processor']}), "
    f"{files['count']:,} JPEGs of {files['mean_bytes'] / 1e3:.0f} kB, measured: median (lowest to "
    f"highest of {result['rounds']} rounds)",
    format_table(
      table, ("pipeline", "images/s and core, by CPU time", "images/s and core, by the clock")
    ),
  ]
  if "best_rival" in result:
    by_cpu = _spread_text(result["ratio_to_best_rival_by_cpu"], "{:.2f}")
    by_clock = _spread_text(result["ratio_to_best_rival_by_clock"], "{:.2f}")
    lines.append(
      f"{by_cpu} times as fast as the best of the others, {result['best_rival']}, by CPU time; "
      f"{by_clock} by the clock"
    )
  if "host" not in result:
    lines.append(
      "cores that a TPU v4 host needs: unknown without the speed of a step (--step_json, which "
      "`python -m profiling.step --json` writes)"
    )
  else:
    host = result["host"]
    lines.append(
      f"F0 with kernels takes {host['images_per_second_per_chip']:,.0f} images/s/chip (estimated): "
      f"a v4 host with {CHIPS_PER_HOST} chips needs {host['cores']:.1f} cores like these to feed "
      f"it; it has {HOST_VCPUS} vCPUs"
    )
  return "\n".join(lines)


def _spread_text(spread: Sequence[float], form: str) -> str:
  median, lowest, highest = map(form.format, spread)
  return f"{median} ({lowest} to {highest})"


def available_cores() -> int:
  """Returns the number of cores that pipelines can be limited to.

  Raises:
    UserError: the system does not limit a process to some of its cores.
  """
  if not hasattr(os, "sched_getaffinity"):
    raise UserError(
      f"{platform.system()} does not limit a process to some of its cores; compare input pipelines "
      "on Linux"
    )
  return len(os.sched_getaffinity(0))


def main(arguments: list[str]) -> None:
  """Measures what can be measured here and prints it."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  images_per_second_per_chip = step_speed(values.step_json)
  cores = min(values.cores or sys.maxsize, available_cores())
  with tempfile.TemporaryDirectory() as temporary:
    root = pathlib.Path(temporary, "images")
    images, held_out = root / "train" / "image", root / "val" / "image"
    images.mkdir(parents=True)
    held_out.mkdir(parents=True)
    if values.images:
      link_images(images, values.images)
    else:
      generate_images(images, _GENERATED_IMAGES)
    first = min(images.iterdir())
    (held_out / first.name).symlink_to(first)
    # A data set has two classes at least.
    other = root / "train" / "other"
    other.mkdir()
    (other / first.name).symlink_to(first)
    sizes = [path.stat().st_size for path in images.iterdir()]
    if sum(sizes) <= 1.1 * record_reader.IN_MEMORY_BYTES_MAX:
      raise UserError(
        f"--images={values.images} holds {sum(sizes) / 1e6:.0f} MB of JPEGs; so small a data set "
        f"is trained from memory: name a folder of {record_reader.IN_MEMORY_BYTES_MAX / 5e5:.0f} MB"
      )
    common = [
      f"--images={images}",
      f"--cores={cores}",
      f"--pixels={values.pixels}",
      f"--batch_size={values.batch_size}",
      f"--batches={values.batches}",
    ]
    out = pathlib.Path(temporary, "data")
    prepare(root, out)
    measurements = {
      name: functools.partial(measure, name, sys.executable, [*common, f"--data={out}"])
      if name in (OURS, OURS_IN_THREADS)
      else functools.partial(measure, name, values.python, common)
      for name in PIPELINES
    }
    rounds = run_rounds(measurements, values.rounds)
  versions: dict[str, str] = {}
  for run in (run for one in rounds for run in one.values()):
    for package, version in run.pop("versions", {}).items():
      versions.setdefault(package, version)
  result = {
    "what": "measured",
    "machine": {"processor": processor_name(), "cores": os.cpu_count()},
    "versions": versions,
    "images": {
      "source": "--images" if values.images else "scikit-learn's photographs",
      "count": len(sizes),
      "mean_bytes": statistics.mean(sizes),
    },
    "pixels": values.pixels,
    "batch_size": values.batch_size,
    "cores": cores,
    "rounds": values.rounds,
    "definition": "[median, lowest, highest] over the rounds; by CPU time: of all processes",
    **summarize(rounds),
    "runs": rounds,
  }
  if images_per_second_per_chip and "not_measured" not in result["speeds"][OURS]:
    speed = result["speeds"][OURS]["images_per_cpu_second"][0]
    result["host"] = {
      "images_per_second_per_chip": images_per_second_per_chip,
      "cores": cores_needed(images_per_second_per_chip, speed),
      "vcpus": HOST_VCPUS,
    }
  print_and_write(as_text(result), lambda: write_json("json", values.json, result))


if __name__ == "__main__":
  define_path("images", None, "Folder of JPEGs to read; generated if not given.", use="read")
  define_path(
    "python", sys.executable, "Interpreter that has TensorFlow, torch and timm.", use="read"
  )
  flags.DEFINE_integer("cores", None, "Cores to use; all by default.", lower_bound=1)
  flags.DEFINE_integer(
    "pixels", 224, "Side of a training image.", lower_bound=1, upper_bound=PIXELS_MAX
  )
  flags.DEFINE_integer("batch_size", 128, "Images per batch.", lower_bound=1)
  flags.DEFINE_integer("batches", 16, "Batches to time in each run.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Runs of each pipeline.", lower_bound=1)
  define_path(
    "step_json",
    str(RESULTS / "step_f0.json"),
    "File that `profiling.step --json` wrote for F0.",
    use="read",
  )
  command_flags.define_json()
  run_main(main)
