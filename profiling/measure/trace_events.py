"""Reads from a profile of jax.profiler what a device did and when.

On CPUs and GPUs, an event's statistic "hlo_op" names the instruction to which the event belongs; on
TPUs the event's own name does (on the line "XLA Ops").
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from profiling.compiler_text.hlo_text import CONTROL_FLOW, kind_of, parse, source_of
from profiling.estimate.step_time import Row, attribute

_TPU_PLANE = "/device:TPU:"
_TPU_LINE = "XLA Ops"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperationEvent:
  """Describes one run of one instruction.

  Attributes:
    plane: device or host on whose timeline the event is.
    instruction: name of the instruction in the program's text.
    start_ns: start of the run since the start of the profile.
    duration_ns: duration of the run.
  """

  plane: str
  instruction: str
  start_ns: float
  duration_ns: float


def read_events(profile: Any, module: str) -> list[OperationEvent]:
  """Reads the events of a program's instructions.

  Args:
    profile: a `jax.profiler.ProfileData`.
    module: name of the compiled program, for example "jit_step"; other programs are left out. TPUs
      do not name the program at each event, so everything on their line of operations counts.
  """
  events = []
  for plane in profile.planes:
    for line in plane.lines:
      on_tpu = plane.name.startswith(_TPU_PLANE)
      if on_tpu and line.name != _TPU_LINE:
        continue
      for event in line.events:
        if on_tpu:
          instruction = re.match(r"%?([\w.\-]+)", event.name)[1]
        else:
          stats = dict(event.stats)
          if "hlo_op" not in stats or stats.get("hlo_module") != module:
            continue
          instruction = str(stats["hlo_op"])
        events.append(
          OperationEvent(
            plane=plane.name,
            instruction=instruction,
            start_ns=event.start_ns,
            duration_ns=event.duration_ns,
          )
        )
  return events


def rows_of(events: Iterable[OperationEvent], hlo_text: str, runs: int) -> tuple[Row, ...]:
  """Returns the time of one run of the program by part, direction and kind; the longest first.

  Instructions that only run others (loops, calls) are left out, because the others have events as
  well. Where several threads compute at once, as on a CPU, their times are added.

  Args:
    events: events of all runs.
    hlo_text: text of the program.
    runs: number of runs of the program times the number of devices that ran it.

  Raises:
    ValueError: no event belongs to the program.
  """
  computations, _ = parse(hlo_text)
  where = {
    name: computation for computation, instructions in computations.items() for name in instructions
  }
  sums: dict[tuple[str, str, str], float] = {}
  for event in events:
    computation = where.get(event.instruction)
    if computation is None:
      continue
    instruction = computations[computation][event.instruction]
    if instruction.opcode in CONTROL_FLOW:
      continue
    source = source_of(computations, computation, instruction)
    key = (*attribute(source), kind_of(computations, instruction))
    sums[key] = sums.get(key, 0.0) + event.duration_ns
  if not sums:
    raise ValueError("the profile has no events of the program's operations")
  return tuple(
    Row(part=part, direction=direction, kind=kind, seconds=nanoseconds * 1e-9 / runs)
    for (part, direction, kind), nanoseconds in sorted(sums.items(), key=lambda item: -item[1])
  )


def busy_share(events: Iterable[OperationEvent]) -> float:
  """Returns the share of the time from first to last event in which some instruction ran.

  It is the mean over planes, each of which is a device (all CPU devices share one).

  Raises:
    ValueError: there are no events.
  """
  spans: dict[str, list[tuple[float, float]]] = {}
  for event in events:
    spans.setdefault(event.plane, []).append((event.start_ns, event.start_ns + event.duration_ns))
  if not spans:
    raise ValueError("there are no events")
  shares = [_busy_share(sorted(intervals)) for intervals in spans.values()]
  return sum(shares) / len(shares)


def _busy_share(intervals: list[tuple[float, float]]) -> float:
  first = end = intervals[0][0]
  busy = 0.0
  for start, stop in intervals:
    busy += max(0.0, stop - max(start, end))
    end = max(end, stop)
  return busy / (end - first) if end > first else 1.0


def module_name(hlo_text: str) -> str:
  """Reads the name of a compiled program from the first line of its text.

  Raises:
    ValueError: the text is not an HLO module.
  """
  found = re.match(r"HloModule ([\w.\-]+)", hlo_text)
  if found is None:
    raise ValueError("text does not begin with HloModule")
  return found[1]
