"""Reads what a device did and when out of a profile that jax.profiler wrote.

Profile in, numbers out. Which instruction an event belongs to is said by its statistic "hlo_op" on
CPUs and GPUs and by the event's name on TPUs (line "XLA Ops").
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
  """One run of one instruction.

  Attributes:
    plane: device or host whose timeline it is on.
    instruction: its name in the program's text.
    start_ns: since the profile's start.
    duration_ns: of the run.
  """

  plane: str
  instruction: str
  start_ns: float
  duration_ns: float


def read_events(profile: Any, module: str) -> list[OperationEvent]:
  """The events of a program's instructions.

  Args:
    profile: a `jax.profiler.ProfileData`.
    module: name of the compiled program, for example "jit_step"; others are left out. TPUs do not
      name it at each event: there, everything on the line of operations counts.
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
  """Time of one run of the program by part, direction and kind; the longest first.

  Instructions that only run others (loops, calls) are left out: the others have events as well.
  Where several threads compute at once, as on a CPU, their times are added.

  Args:
    events: of all runs.
    hlo_text: of the program.
    runs: of the program, times the devices that ran it.

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
  """Share of the time from the first event to the last in which some instruction ran.

  The mean over planes, each of which is a device (all CPU devices share one).

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
  """Of a compiled program, from the first line of its text.

  Raises:
    ValueError: it is no HLO module.
  """
  found = re.match(r"HloModule ([\w.\-]+)", hlo_text)
  if found is None:
    raise ValueError("text does not begin with HloModule")
  return found[1]
