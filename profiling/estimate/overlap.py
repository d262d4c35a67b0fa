"""Works out how much time collectives add to the operations that run beside them.

The schedule is followed event by event. A transfer is in flight from its start until it has sent
everything. Transfers in flight share each channel equally, and each is as slow as its busiest
channel makes it. They take HBM bandwidth from the operation that runs meanwhile, evenly over all
of it. What is left of a transfer at its done is waited for.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

from profiling.compiler_text.schedule import Event
from profiling.estimate.transfers import Channel, Transfer


@dataclasses.dataclass(frozen=True)
class Work:
  """The time that an operation takes with nothing beside it, by what it waits for.

  Attributes:
    issuing_seconds: time that its instructions take, which transfers beside it do not lengthen.
    memory_seconds: time that it needs the whole bandwidth of HBM; it overlaps with issuing.
  """

  issuing_seconds: float
  memory_seconds: float

  @property
  def seconds(self) -> float:
    """Returns the time that the operation takes."""
    return max(self.issuing_seconds, self.memory_seconds)


@dataclasses.dataclass(frozen=True)
class Exposed:
  """The time that collectives add to a step.

  Attributes:
    waiting_seconds: time in which nothing runs but collectives.
    slowing_seconds: time by which collectives lengthen the operations beside them.
  """

  waiting_seconds: float
  slowing_seconds: float


def exposed_time(
  events: Iterable[Event], works: Mapping[str, Work], transfers: Mapping[str, Transfer]
) -> Exposed:
  """Returns the time that collectives add.

  Args:
    events: events of the whole program, in order.
    works: what operations take, by name; those that are missing take no time.
    transfers: what collectives need, by name.
  """
  flights = _Flights(transfers)
  waiting_seconds = slowing_seconds = 0.0
  for event in events:
    match event.action:
      case "start":
        flights.start(event.name)
      case "done":
        waiting_seconds += flights.wait_for(event.name)
      case "run" if event.name in transfers:
        flights.start(event.name)
        waiting_seconds += flights.wait_for(event.name)
      case "run" if event.name in works and flights:
        work = works[event.name]
        slowing_seconds += flights.run_beside(work) - work.seconds
  return Exposed(waiting_seconds, slowing_seconds)


@functools.lru_cache(maxsize=1024)
def _speeds_by_channels(
  flights: frozenset[tuple[frozenset[Channel], int]],
) -> dict[frozenset[Channel], float]:
  """Returns the speeds of transfers that use certain channels, given how many use which."""
  users: collections.Counter[Channel] = collections.Counter()
  for channels, count in flights:
    users.update(dict.fromkeys(channels, count))
  return {channels: 1 / max(users[channel] for channel in channels) for channels, _ in flights}


class _Flights:
  """The transfers in flight, with the time that each still needs its links to itself."""

  def __init__(self, transfers: Mapping[str, Transfer]):
    self._transfers = transfers
    self._left: dict[str, float] = {}

  def __bool__(self) -> bool:
    return bool(self._left)

  def start(self, name: str) -> None:
    if self._transfers[name].seconds:
      self._left[name] = self._transfers[name].seconds

  def wait_for(self, name: str) -> float:
    """Returns the time until a transfer has ended, and lets it pass."""
    waited = 0.0
    while name in self._left:
      waited += self._advance(math.inf)
    return waited

  def run_beside(self, work: Work) -> float:
    """Returns the time that an operation takes beside the transfers, and lets it pass."""
    left, took = 1.0, 0.0
    while self._left and left > 0:
      free = 1 - sum(
        speed * self._transfers[name].hbm_share for name, speed in self._speeds().items()
      )
      slowed = Work(work.issuing_seconds, work.memory_seconds / free if free > 0 else math.inf)
      limit = left * slowed.seconds
      passed = self._advance(limit)
      took += passed
      left = 0.0 if passed == limit else left - passed / slowed.seconds
    return took + left * work.seconds

  def _speeds(self) -> dict[str, float]:
    """Returns the share of its full speed that each transfer has."""
    # Many transfers use the same channels, and few combinations of these recur.
    flights = collections.Counter(self._transfers[name].channels for name in self._left)
    speeds = _speeds_by_channels(frozenset(flights.items()))
    return {name: speeds[self._transfers[name].channels] for name in self._left}

  def _advance(self, limit: float) -> float:
    """Lets time pass until a transfer ends, or as much as `limit`, and returns how much."""
    speeds = self._speeds()
    passed = min(limit, *(self._left[name] / speed for name, speed in speeds.items()))
    # Dividing first, as above, makes what ends now equal to `passed` and not nearly so.
    self._left = {
      name: left - passed * speeds[name]
      for name, left in self._left.items()
      if left / speeds[name] > passed
    }
    return passed
