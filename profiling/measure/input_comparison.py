"""Runs input pipelines side by side in rounds, and compares their speeds."""

import collections
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from nfnet.errors import UserError
from profiling.measure.child_process import run_for_json
from profiling.measure.input_pipelines import OURS, OURS_IN_THREADS, TF_DATA_ANTIALIASED

# These are not rivals: one is this project run in another way, the other is a rival slowed down to
# give the image quality of all others.
_FOR_INFORMATION = (OURS_IN_THREADS, TF_DATA_ANTIALIASED)

CHIPS_PER_HOST = 4
HOST_VCPUS = 240
"""Number of hyperthreads of a TPU v4 host, for its four chips (cloud.google.com/tpu/docs/v4)."""

Run = dict[str, Any]
"""Figures of `profiling.measure.input_worker`, or {"not_measured": why}."""


def measure(
  pipeline: str, interpreter: str, arguments: Sequence[str], *, timeout_seconds: float = 600
) -> Run:
  """Runs `profiling.measure.input_worker` in a process of its own.

  Args:
    pipeline: name of the pipeline.
    interpreter: Python interpreter that has the pipeline's packages.
    arguments: other arguments of the worker.
    timeout_seconds: time after which the process is killed.

  Raises:
    UserError: the interpreter cannot be started.
  """
  root = pathlib.Path(__file__).parents[2]
  inherited = os.environ.get("PYTHONPATH")
  import_path = os.pathsep.join([str(root), *([inherited] if inherited else [])])
  try:
    return run_for_json(
      [
        *(interpreter, "-P", "-m", "profiling.measure.input_worker"),
        *(f"--pipeline={pipeline}", *arguments),
      ],
      folder=root,
      environment={**os.environ, "PYTHONPATH": import_path},
      timeout_seconds=timeout_seconds,
    )
  except OSError as error:
    raise UserError(f"--python={interpreter} does not run: {error.strerror}") from error


def run_rounds(measurements: Mapping[str, Callable[[], Run]], rounds: int) -> list[dict[str, Run]]:
  """Measures pipelines in rotation: each round begins with a different one.

  Args:
    measurements: function that measures a pipeline once, by the pipeline's name.
    rounds: number of rounds.

  Returns:
    For each round, the figures by the pipeline's name.
  """
  order = collections.deque(measurements)
  results = []
  with tqdm(total=rounds * len(order), desc="runs", leave=False, disable=None) as progress:
    for _ in range(rounds):
      found = {}
      for name in order:
        found[name] = measurements[name]()
        progress.update()
      results.append({name: found[name] for name in measurements})
      order.rotate(-1)
  return results


def summarize(rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
  """Returns speeds and their ratios.

  Args:
    rounds: for each round, the figures by the pipeline's name.

  Returns:
    For each pipeline, its images per second and core, by CPU time and by the clock, as [median,
    lowest, highest] over the rounds; the fastest rival; and the ratio of this project's speed to
    that rival's in the same round.
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
  """Returns the cores that a host needs to feed its four chips."""
  return CHIPS_PER_HOST * images_per_second_per_chip / images_per_cpu_second


def _per_cpu_second(run: Run) -> float:
  return run["images"] / run["cpu_seconds"]


def _per_second_and_core(run: Run) -> float:
  return run["images"] / run["seconds"] / run["cores"]


def _spread(values: Sequence[float]) -> list[float]:
  """Returns median, minimum and maximum."""
  return [statistics.median(values), min(values), max(values)]


def processor_name() -> str:
  """Returns the name of this machine's processor."""
  for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()
