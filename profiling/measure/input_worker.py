"""Times one input pipeline; `profiling.input_pipeline` runs it in a process of its own.

    python -m profiling.measure.input_worker --pipeline=tf.data --images=FOLDER --cores=2

Prints one line of JSON. Imports the standard library only, as `input_pipelines` does.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from typing import Any

from profiling.measure.input_pipelines import PACKAGES, PIPELINES

_WARMUP_BATCHES = 4


def measure(options: argparse.Namespace) -> dict[str, Any]:
  """Times batches after a warm-up, by the clock and by the CPU time of the pipeline's processes."""
  cores = sorted(os.sched_getaffinity(0))[: options.cores]
  os.sched_setaffinity(0, cores)
  batches = PIPELINES[options.pipeline](options)
  for _ in range(_WARMUP_BATCHES):
    batch = next(batches)
  expected = (options.batch_size, options.pixels, options.pixels, 3)
  if tuple(batch.shape) != expected or "uint8" not in str(batch.dtype):
    raise ValueError(f"a batch is {batch.dtype} {tuple(batch.shape)}, not uint8 {expected}")
  cpu_started, started = cpu_seconds(), time.perf_counter()
  for _ in range(options.batches):
    next(batches)
  seconds, used = time.perf_counter() - started, cpu_seconds() - cpu_started
  batches.close()
  return {
    "images": options.batches * options.batch_size,
    "seconds": seconds,
    "cpu_seconds": used,
    "cores": 1 if options.pipeline == "Pillow" else len(cores),
    "versions": _versions(),
  }


def cpu_seconds() -> float:
  """Returns the CPU time that this process and its descendants have used."""
  ticks_by_pid, parents = {}, {}
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      # The process's name, in parentheses, may contain anything.
      fields = path.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    pid = int(path.parent.name)
    parents[pid] = int(fields[1])
    # User and kernel time of the process, then of its children that have ended.
    ticks_by_pid[pid] = sum(map(int, fields[11:15]))
  ticks = 0
  for pid, used in ticks_by_pid.items():
    ancestor = pid
    while ancestor != os.getpid() and ancestor in parents:
      ancestor = parents[ancestor]
    if ancestor == os.getpid():
      ticks += used
  return ticks / os.sysconf("SC_CLK_TCK")


def _versions() -> dict[str, str]:
  found = {"Python": platform.python_version()}
  for package in PACKAGES:
    for name in (package, f"{package}-cpu"):
      try:
        found[package] = importlib.metadata.version(name)
      except importlib.metadata.PackageNotFoundError:
        continue
  return found


def main() -> None:
  """Prints the measurement that the arguments ask for."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--pipeline", required=True, choices=PIPELINES)
  parser.add_argument("--images", required=True, help="folder of JPEGs")
  parser.add_argument("--data", help="the same, prepared (for this project)")
  parser.add_argument("--cores", type=int, required=True)
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--batches", type=int, default=16)
  parser.add_argument("--pixels", type=int, default=224)
  print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
  main()
