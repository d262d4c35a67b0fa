"""Reads the order in which a scheduled HLO program runs operations and starts transfers."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from profiling.compiler_text.control_flow import (
  called_computation,
  find_dones,
  started_collectives,
)
from profiling.compiler_text.hlo_text import Computations, parse


@dataclasses.dataclass(frozen=True)
class Event:
  """Something that happens to one operation at one place of the schedule.

  Attributes:
    action: "run" the operation and wait for its end, or, for an asynchronous collective, "start" it
      and go on, or be "done" with it: wait for its end.
    name: name of the operation (`profiling.compiler_text.hlo_cycles.Operation.name`).
  """

  action: Literal["run", "start", "done"]
  name: str


@dataclasses.dataclass(frozen=True)
class Loop:
  """Part of a schedule that runs several times.

  Attributes:
    events: what runs in one trip.
    trips: number of trips.
  """

  events: "Schedule"
  trips: int


Schedule = tuple[Event | Loop, ...]
"""The order of a program's events."""


def read_schedule(text: str) -> Schedule:
  """Returns the schedule of a program. It also has events of instructions that take no time.

  Args:
    text: text of an optimized, scheduled HLO module.

  Raises:
    ValueError: the text is not such a module, a loop's trip count cannot be read, or a collective
      starts and is not done in the same computation.
  """
  computations, entry = parse(text)
  if "is_scheduled=true" not in text.split("\n", 1)[0]:
    raise ValueError("the HLO module is not scheduled: its order says nothing about time")
  return _events(computations, entry)


def unroll(schedule: Schedule) -> Iterator[Event]:
  """Yields all events in order, those of a loop once for each trip."""
  for item in schedule:
    if isinstance(item, Loop):
      for _ in range(item.trips):
        yield from unroll(item.events)
    else:
      yield item


def _events(computations: Computations, name: str) -> Schedule:
  """Returns the schedule of one computation, with those that it calls."""
  instructions = computations[name]
  started = {
    done.name: started_collectives(computations, instructions[start])
    for start, done in find_dones(computations, name).items()
  }
  events: list[Event | Loop] = []
  for instruction in instructions.values():
    if called := called_computation(computations, name, instruction):
      events.append(Loop(_events(computations, called[0]), called[1]))
    elif collectives := started_collectives(computations, instruction):
      events += [Event("start", collective) for collective in collectives]
    elif instruction.name in started:
      events += [Event("done", collective) for collective in started[instruction.name]]
    else:
      events.append(Event("run", instruction.name))
  return tuple(events)
