"""Estimates the time of a compiled training step from its operations, by part and by kind."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from profiling.compile.topology import Topology
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.hlo_cycles import Operation
from profiling.compiler_text.kernel_profiles import KernelProfile
from profiling.compiler_text.schedule import Schedule, unroll
from profiling.estimate.overlap import Work, exposed_time
from profiling.estimate.transfers import Coordinates, transfer_of
from train.report.table import format_table

Direction = Literal["forward", "backward", ""]

RULES = (
  "the compiler's cycles of each operation x its executions / clock, one after the other; a Pallas "
  "kernel takes the longer of its bundles / clock and its copies / HBM bandwidth, the sum where it "
  "has no grid; asynchronous copies and scalar arithmetic free; collectives take their bytes over "
  "the slice's links while nothing else runs; only those with a start and a done in the schedule "
  "run beside what is between the two, and what is left of them is waited for; transfers in flight "
  "together share links (all links, where the places of the devices are not known) and leave the "
  "rest of HBM bandwidth to operations, which are taken to need HBM all the time, unless they are "
  "kernels with known copies"
)
"""States which operations take time and what overlaps; `estimate` applies these rules."""

# Scopes that `nfnet.model` and `train.step.train_step` put around their parts, "stage_1" for
# "stage 1".
_PARTS = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "head", "optimizer")
COLLECTIVES = "collectives"
OTHER = "other"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """The time that operations of one part, direction and kind take in a step.

  Attributes:
    part: "stem", "stage 1" to "stage 4", "head", "optimizer", "collectives" or "other".
    direction: direction of the pass for parts of the network; "" for the rest.
    kind: kind of the operations.
    seconds: time in one step.
  """

  part: str
  direction: Direction
  kind: str
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
  """The estimated time of one training step.

  Attributes:
    rows: one row for each part, direction and kind that takes time. Those of collectives have the
      time that they add to the step.
    collective_seconds: time in collectives if each had the links to itself, also where it overlaps
      with operations.
    collective_bytes: size of the arrays that are summed, scattered or gathered in one step, each
      counted once.
  """

  rows: tuple[Row, ...]
  collective_seconds: float
  collective_bytes: int

  @property
  def seconds(self) -> float:
    """Returns the time of the whole step."""
    return sum(row.seconds for row in self.rows)

  @property
  def exposed_collective_seconds(self) -> float:
    """Returns the time that collectives add: waiting for them, and operations that they slow."""
    return sum(row.seconds for row in self.rows if row.part == COLLECTIVES)

  @property
  def compute_seconds(self) -> float:
    """Returns the time of all operations but collectives, with nothing beside them."""
    return self.seconds - self.exposed_collective_seconds

  @property
  def seconds_without_overlap(self) -> float:
    """Returns the time of the whole step if nothing ran beside collectives, an upper bound."""
    return self.seconds + (self.collective_seconds - self.exposed_collective_seconds)

  @property
  def milliseconds(self) -> str:
    """Returns the step's time for a table's column "step ms, without overlap"."""
    return f"{self.seconds * 1e3:.1f}, {self.seconds_without_overlap * 1e3:.1f}"

  def as_json(self) -> dict[str, float]:
    """Returns the figures that every command writes, without the rows."""
    return {
      "step_seconds": self.seconds,
      "step_seconds_without_overlap": self.seconds_without_overlap,
      "collective_seconds": self.collective_seconds,
      "exposed_collective_seconds": self.exposed_collective_seconds,
    }

  def by(self, *fields: str) -> dict[tuple[str, ...], float]:
    """Returns `sum_by` of the step's rows."""
    return sum_by(self.rows, *fields)


def sum_by(rows: Iterable[Row], *fields: str) -> dict[tuple[str, ...], float]:
  """Returns seconds summed by some of the rows' fields, in the order in which they first appear."""
  sums: dict[tuple[str, ...], float] = collections.defaultdict(float)
  for row in rows:
    sums[tuple(getattr(row, field) for field in fields)] += row.seconds
  return dict(sums)


def format_rows(rows: Sequence[Row], whole_seconds: float) -> str:
  """Returns two tables for a terminal: by part and direction, and by kind, the longest first.

  Args:
    rows: rows of a step.
    whole_seconds: time of which the tables give shares.
  """
  parts = [
    (part, direction, f"{seconds * 1e3:.2f}", f"{seconds / whole_seconds:.1%}")
    for (part, direction), seconds in sum_by(_in_order(rows), "part", "direction").items()
  ]
  kinds = [
    (kind, f"{seconds * 1e3:.2f}", f"{seconds / whole_seconds:.1%}")
    for (kind,), seconds in sorted(sum_by(rows, "kind").items(), key=lambda item: -item[1])
  ]
  return "\n".join(
    [
      format_table(parts, ("part", "direction", "ms", "share")),
      "",
      format_table(kinds, ("kind of operation", "ms", "share")),
    ]
  )


def _in_order(rows: Iterable[Row]) -> list[Row]:
  """Returns the rows as a step runs: from the stem to the optimizer, forward before backward."""
  order = (*_PARTS, COLLECTIVES, OTHER)
  return sorted(rows, key=lambda row: (order.index(row.part), row.direction != "forward"))


def estimate(
  operations: Sequence[Operation],
  schedule: Schedule,
  topology: Topology,
  kernels: Mapping[str, KernelProfile] | None = None,
  coordinates: Coordinates | None = None,
) -> StepTime:
  """Estimates the time of a step by `RULES`.

  Args:
    operations: operations of the whole program, as one device runs it.
    schedule: order of the operations.
    topology: slice that the program was compiled for.
    kernels: profiles of the Pallas kernels by the name of the operation.
    coordinates: places of the program's devices in the slice; None if they are not known.

  Raises:
    KeyError: a Pallas kernel has no profile.
  """
  seconds: dict[tuple[str, Direction, str], float] = collections.defaultdict(float)
  works, transfers = {}, {}
  collective_seconds, collective_bytes = 0.0, 0
  for operation in operations:
    if operation.kind == "collective":
      transfer = transfer_of(operation, topology, coordinates)
      transfers[operation.name] = transfer
      collective_seconds += transfer.seconds * operation.executions
      collective_bytes += operation.whole_bytes * operation.executions
    else:
      work = _work(operation, topology.chip, kernels or {})
      works[operation.name] = work
      part, direction = attribute(operation.source)
      seconds[part, direction, operation.kind] += work.seconds * operation.executions
  if transfers:
    exposed = exposed_time(unroll(schedule), works, transfers)
    seconds[COLLECTIVES, "", "collective"] = exposed.waiting_seconds
    if exposed.slowing_seconds > 0:
      seconds[COLLECTIVES, "", "slowed by collectives"] = exposed.slowing_seconds
  rows = [
    Row(part=part, direction=direction, kind=kind, seconds=value)
    for (part, direction, kind), value in seconds.items()
  ]
  return StepTime(
    rows=tuple(_in_order(rows)),
    collective_seconds=collective_seconds,
    collective_bytes=collective_bytes,
  )


def _work(operation: Operation, chip: Chip, kernels: Mapping[str, KernelProfile]) -> Work:
  """Returns the time of an operation by what it waits for.

  The compiler's cycles do not say how much of them is waiting for HBM, so all of it may be. The
  same goes for kernels that do not copy while they compute, or whose copies are not known.
  """
  if operation.kind != "kernel":
    return Work(0.0, operation.cycles / chip.clock_hz)
  profile = kernels[operation.name]
  if profile.copies_overlap and profile.hbm_bytes is not None:
    return Work(profile.issuing_seconds(chip), profile.copying_seconds(chip))
  return Work(0.0, profile.seconds(chip))


def attribute(source: str) -> tuple[str, Direction]:
  """Returns the part and direction to which a path of JAX names belongs (`Operation.source`)."""
  scopes = {name: name.replace(" ", "_") for name in _PARTS}
  part = next((name for name in _PARTS if re.search(rf"\b{scopes[name]}\b", source)), OTHER)
  if part in ("optimizer", OTHER):
    return part, ""
  return part, "backward" if "transpose(" in source else "forward"
