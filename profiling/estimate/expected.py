"""Says what a TPU v4 should take if the stored estimates are right: ops, a step, collectives.

Everything follows from `profiling/results` and the links' bandwidth; nothing is compiled.
"""

import dataclasses
from typing import Any

from profiling.compile.topology import Topology, parse_topology
from profiling.estimate.step_time import Row
from profiling.estimate.stored import read_stored

OPCODES = {"psum": "all-reduce", "all_gather": "all-gather", "psum_scatter": "reduce-scatter"}
"""The compiler's names of collectives, by JAX's names of them."""
COLLECTIVE_MEBIBYTES = (1, 16, 256)
"""Sizes of the arrays that collectives are timed with; the gradient of F0 has 273 MiB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedOps:
  """The stored estimates of ops.

  Attributes:
    topology: slice of the chip that they are for.
    images: number of images on the chip.
    seconds: time by label and direction; the reference's where there is no kernel.
    versions: versions of the compiling packages.
  """

  topology: Topology
  images: int
  seconds: dict[tuple[str, str], float]
  versions: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedStep:
  """The stored estimate of a training step.

  Attributes:
    request: what was compiled, by the names of `profiling.step`'s flags.
    topology: slice that it was compiled for.
    seconds: time of the step.
    rows: where the time goes.
  """

  request: dict[str, Any]
  topology: Topology
  seconds: float
  rows: tuple[Row, ...]


def expected_ops() -> ExpectedOps:
  """Returns what `profiling.kernels` has stored."""
  stored = read_stored("ops.json")
  topology = parse_topology(stored["topology"])
  cycles = {
    (row["label"], row["direction"]): row["kernel_cycles"] or row["xla_cycles"]
    for row in stored["rows"]
  }
  return ExpectedOps(
    topology=topology,
    images=stored["images_per_chip"],
    seconds={key: value / topology.chip.clock_hz for key, value in cycles.items() if value},
    versions=stored["versions"],
  )


def expected_step() -> ExpectedStep:
  """Returns what `profiling.step` has stored of the smallest published network."""
  stored = read_stored("step_f0.json")
  return ExpectedStep(
    request=stored["request"],
    topology=parse_topology(stored["request"]["topology"]),
    seconds=stored["estimated"]["step_seconds"],
    rows=tuple(Row(**row) for row in stored["estimated"]["rows"]),
  )


def expected_collective_seconds(name: str, whole_bytes: int, topology: Topology) -> float:
  """Returns the time of a collective of all chips, with the links as the only limit.

  Args:
    name: JAX's name of the collective, one of `OPCODES`.
    whole_bytes: size of the array before it is scattered or after it is gathered.
    topology: slice.
  """
  return topology.collective_seconds(OPCODES[name], whole_bytes)
