"""Estimates the time of a compiled training step from its operations, by part and by kind."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from profiling.compile.topology import Topology
from profiling.compiler_text.hlo_cycles import Operation
from profiling.compiler_text.kernel_profiles import KernelProfile
from train.report.table import format_table

Direction = Literal["forward", "backward", ""]

RULES = (
  "the compiler's cycles of each operation x its executions / clock, one after the other; a Pallas "
  "kernel takes the longer of its bundles / clock and its copies / HBM bandwidth, the sum where it "
  "has no grid; then all "
  "collectives, bytes over the slice's links, overlapped with nothing; asynchronous copies and "
  "scalar arithmetic free"
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
    rows: one row for each part, direction and kind that takes time.
    collective_bytes: size of the arrays that are summed, scattered or gathered in one step, each
      counted once.
  """

  rows: tuple[Row, ...]
  collective_bytes: int

  @property
  def seconds(self) -> float:
    """Returns the time of the whole step."""
    return sum(row.seconds for row in self.rows)

  @property
  def collective_seconds(self) -> float:
    """Returns the time in collectives."""
    return sum(row.seconds for row in self.rows if row.part == COLLECTIVES)

  @property
  def compute_seconds(self) -> float:
    """Returns the time outside collectives."""
    return self.seconds - self.collective_seconds

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
  topology: Topology,
  kernels: Mapping[str, KernelProfile] | None = None,
) -> StepTime:
  """Estimates the time of a step by `RULES`.

  Args:
    operations: operations of the whole program, as one device runs it.
    topology: slice that the program was compiled for.
    kernels: profiles of the Pallas kernels by the name of the operation.

  Raises:
    KeyError: a Pallas kernel has no profile.
  """
  seconds: dict[tuple[str, Direction, str], float] = collections.defaultdict(float)
  collective_bytes = 0
  for operation in operations:
    if operation.kind == "collective":
      collective_bytes += operation.whole_bytes * operation.executions
      once = topology.collective_seconds(
        operation.opcode, operation.whole_bytes, operation.group_devices
      )
      seconds[COLLECTIVES, "", operation.kind] += once * operation.executions
    else:
      if operation.kind == "kernel":
        once = (kernels or {})[operation.name].seconds(topology.chip)
      else:
        once = operation.cycles / topology.chip.clock_hz
      part, direction = attribute(operation.source)
      seconds[part, direction, operation.kind] += once * operation.executions
  rows = [
    Row(part=part, direction=direction, kind=kind, seconds=value)
    for (part, direction, kind), value in seconds.items()
  ]
  return StepTime(rows=tuple(_in_order(rows)), collective_bytes=collective_bytes)


def attribute(source: str) -> tuple[str, Direction]:
  """Returns the part and direction to which a path of JAX names belongs (`Operation.source`)."""
  scopes = {name: name.replace(" ", "_") for name in _PARTS}
  part = next((name for name in _PARTS if re.search(rf"\b{scopes[name]}\b", source)), OTHER)
  if part in ("optimizer", OTHER):
    return part, ""
  return part, "backward" if "transpose(" in source else "forward"
