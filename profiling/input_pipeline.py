r"""Images decoded, cropped and augmented a second and core, beside tf.data, timm and Pillow.

    python -m profiling.input_pipeline [--images=FOLDER] [--python=INTERPRETER] [--json=OUT]

All read the same JPEGs on the same cores: one after the other in processes of their own, in several
rounds, each of which begins with another pipeline. This project's batches are those of training
(`train.data.batches.train_batches`, one worker process a core), from a data set that is prepared
first. For information, the same is measured in threads of the training process.

TensorFlow, PyTorch and timm are no dependencies of this project: --python names an interpreter that
has them. What is missing there is "not measured".

Without --images the images are 500 x 375 windows of the two photographs in scikit-learn, with the
110 kB that an image of ImageNet has.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from PIL import Image
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from profiling.estimate.stored import RESULTS
from profiling.measure.input_worker import PIPELINES
from train.data import dataset_writer, image_sources, record_reader
from train.report.output import write_json
from train.report.table import format_table

OURS = "this project"
_OURS_IN_THREADS = "this project, in threads"
# No rivals: this project another way, and a rival made slower for the quality that all others have.
_FOR_INFORMATION = (_OURS_IN_THREADS, "tf.data, antialiased")

_GENERATED_IMAGES = 1024
_GENERATED_SIZE = (500, 375)
# 111 kB on average. ImageNet's training images: 110 kB, most of about 500 x 375.
_GENERATED_QUALITY = 98

CHIPS_PER_HOST = 4
HOST_VCPUS = 240
"""Of a TPU v4 host, for its four chips (cloud.google.com/tpu/docs/v4); a vCPU is a hyperthread."""

Run = dict[str, Any]


def generate_images(folder: pathlib.Path, count: int) -> None:
  """Writes JPEGs of ImageNet's size, cut from scikit-learn's photographs; always the same."""
  try:
    import sklearn.datasets
  except ImportError as error:
    raise UserError(
      "scikit-learn is not installed, whose photographs are the default: install it, or name "
      "images with --images=FOLDER"
    ) from error
  photographs = [
    Image.open(path).convert("RGB")
    for path in sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
  ]
  generator = random.Random(0)
  width, height = _GENERATED_SIZE
  for number in range(count):
    photograph = photographs[number % len(photographs)]
    left = generator.randrange(photograph.width - width + 1)
    top = generator.randrange(photograph.height - height + 1)
    window = photograph.crop((left, top, left + width, top + height))
    window.save(folder / f"{number:05d}.jpg", quality=_GENERATED_QUALITY, subsampling="4:2:0")


def link_images(folder: pathlib.Path, source: str) -> None:
  """Links the JPEGs below a folder from another one; raises UserError when there are none."""
  paths = sorted(
    path for path in pathlib.Path(source).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
  )
  if not paths:
    raise UserError(f"--images={source} holds no *.jpg or *.jpeg")
  for number, path in enumerate(paths):
    (folder / f"{number:07d}.jpg").symlink_to(path.resolve())


def prepare(images: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the data set of a folder that holds train/CLASS and val/CLASS."""
  with contextlib.redirect_stderr(io.StringIO()):
    dataset_writer.write_dataset(
      out, image_sources.read_source(images), workers=os.cpu_count() or 1
    )


def measure(
  pipeline: str, interpreter: str, arguments: Sequence[str], *, timeout_seconds: float = 600
) -> Run:
  """`profiling.measure.input_worker`'s figures, or {"not_measured": why}."""
  root = pathlib.Path(__file__).parents[1]
  try:
    process = subprocess.run(
      [interpreter, "-m", "profiling.measure.input_worker", f"--pipeline={pipeline}", *arguments],
      cwd=root,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path(root))},
      capture_output=True,
      text=True,
      check=False,
      timeout=timeout_seconds,
    )
  except OSError as error:
    raise UserError(f"--python={interpreter} does not run: {error.strerror}") from error
  except subprocess.TimeoutExpired:
    return {"not_measured": f"no figures after {timeout_seconds:.0f} s"}
  if process.returncode:
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    return {"not_measured": lines[-1] if lines else f"exit code {process.returncode}"}
  return json.loads(process.stdout.splitlines()[-1])


def summarize(rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
  """Speeds and their ratios.

  Args:
    rounds: by pipeline, what was measured in each.

  Returns:
    By pipeline images a second and core, by CPU time and by the clock, as [median, lowest,
    highest] over the rounds; the fastest rival, and how many times as fast this project is in the
    same round.
  """
  speeds: dict[str, Any] = {}
  for pipeline in rounds[0]:
    runs = [one[pipeline] for one in rounds]
    reasons = [run["not_measured"] for run in runs if "not_measured" in run]
    if reasons:
      speeds[pipeline] = {"not_measured": reasons[0]}
      continue
    speeds[pipeline] = {
      "images_per_cpu_second": _spread([_per_cpu_second(run) for run in runs]),
      "images_per_second_per_core": _spread([_per_second_and_core(run) for run in runs]),
    }
  rivals = [
    pipeline
    for pipeline, speed in speeds.items()
    if pipeline not in (OURS, *_FOR_INFORMATION) and "not_measured" not in speed
  ]
  result: dict[str, Any] = {"speeds": speeds}
  if rivals and "not_measured" not in speeds[OURS]:
    best = max(rivals, key=lambda rival: speeds[rival]["images_per_cpu_second"][0])
    result["best_rival"] = best
    for name, speed_of in (("cpu", _per_cpu_second), ("clock", _per_second_and_core)):
      result[f"ratio_to_best_rival_by_{name}"] = _spread(
        [speed_of(one[OURS]) / speed_of(one[best]) for one in rounds]
      )
  return result


def cores_needed(images_per_second_per_chip: float, images_per_cpu_second: float) -> float:
  """Cores that a host needs for its four chips."""
  return CHIPS_PER_HOST * images_per_second_per_chip / images_per_cpu_second


def as_text(result: Mapping[str, Any]) -> str:
  """For a terminal."""
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


def _import_path(root: pathlib.Path) -> list[str]:
  inherited = os.environ.get("PYTHONPATH")
  return [str(root), *([inherited] if inherited else [])]


def _per_cpu_second(run: Run) -> float:
  return run["images"] / run["cpu_seconds"]


def _per_second_and_core(run: Run) -> float:
  return run["images"] / run["seconds"] / run["cores"]


def _spread(values: Sequence[float]) -> list[float]:
  return [statistics.median(values), min(values), max(values)]


def _spread_text(spread: Sequence[float], form: str) -> str:
  median, lowest, highest = map(form.format, spread)
  return f"{median} ({lowest} to {highest})"


def _processor() -> str:
  for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()


def _step_speed(path: str) -> float | None:
  """Images/s/chip of a file that `profiling.step --json` wrote; None where there is no file."""
  try:
    return json.loads(pathlib.Path(path).read_text())["estimated"]["images_per_second_per_chip"]
  except OSError:
    return None
  except (ValueError, KeyError) as error:
    raise UserError(
      f"--step_json={path} is not what `python -m profiling.step --json` writes"
    ) from error


def _run_rounds(
  pipelines: Mapping[str, tuple[str, Sequence[str]]], rounds: int
) -> list[dict[str, Run]]:
  """Runs them in rotation: which one is first changes from round to round."""
  order = collections.deque(pipelines)
  results = []
  with tqdm(total=rounds * len(order), desc="runs", leave=False, disable=None) as progress:
    for _ in range(rounds):
      found = {}
      for name in order:
        interpreter, arguments = pipelines[name]
        found[name] = measure(name, interpreter, arguments)
        progress.update()
      results.append({name: found[name] for name in pipelines})
      order.rotate(-1)
  return results


def main(arguments: list[str]) -> None:
  """Measures what there is and prints it."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  step_speed = _step_speed(values.step_json)
  cores = min(values.cores or sys.maxsize, len(os.sched_getaffinity(0)))
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
    pipelines: dict[str, tuple[str, Sequence[str]]] = dict.fromkeys(
      PIPELINES, (values.python, common)
    )
    out = pathlib.Path(temporary, "data")
    prepare(root, out)
    for name in (OURS, _OURS_IN_THREADS):
      pipelines[name] = (sys.executable, [*common, f"--data={out}"])
    rounds = _run_rounds(pipelines, values.rounds)
  versions: dict[str, str] = {}
  for run in (run for one in rounds for run in one.values()):
    for package, version in run.pop("versions", {}).items():
      versions.setdefault(package, version)
  result = {
    "what": "measured",
    "machine": {"processor": _processor(), "cores": os.cpu_count()},
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
  if step_speed and "not_measured" not in result["speeds"][OURS]:
    speed = result["speeds"][OURS]["images_per_cpu_second"][0]
    result["host"] = {
      "images_per_second_per_chip": step_speed,
      "cores": cores_needed(step_speed, speed),
      "vcpus": HOST_VCPUS,
    }
  write_json("json", values.json, result)
  print(as_text(result))


if __name__ == "__main__":
  flags.DEFINE_string("images", None, "Folder of JPEGs to read; None makes some.")
  flags.DEFINE_string("python", sys.executable, "Interpreter that has TensorFlow, torch and timm.")
  flags.DEFINE_integer("cores", None, "To use; all by default.", lower_bound=1)
  flags.DEFINE_integer("pixels", 224, "Side of a training image.", lower_bound=1)
  flags.DEFINE_integer("batch_size", 128, "Images a batch.", lower_bound=1)
  flags.DEFINE_integer("batches", 16, "To time, in each run.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Runs of each pipeline.", lower_bound=1)
  flags.DEFINE_string(
    "step_json", str(RESULTS / "step_f0.json"), "What `profiling.step --json` wrote for F0."
  )
  flags.DEFINE_string("json", None, "Write the figures to this file too.")
  run_main(main)
