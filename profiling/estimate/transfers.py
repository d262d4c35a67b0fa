"""Says what a collective needs of a slice: which links, for how long, and what share of HBM.

A chip has one outgoing channel along an axis of two chips and two, one in each direction, along a
longer one.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from profiling.compile.topology import Topology
from profiling.compiler_text.hlo_cycles import Operation

Channel = tuple[tuple[int, ...], int, int]
"""Place of the sending chip, axis of the slice, and direction along it, 1 or -1."""

Coordinates = Sequence[tuple[int, ...]]
"""Each device's place in the slice, by its number in the program, which is that in the mesh."""

# How often a collective reads or writes its whole arrays in HBM, at most. It reads what it sends
# and writes what it receives. A reduction also reads its own addend; the sum of both is made in
# VMEM. A sum that all chips get is scattered and gathered.
_HBM_PASSES = {"reduce-scatter": 3, "all-reduce": 5}
_HBM_PASSES_OF_MOVING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
  """The time, links and memory bandwidth that one run of a collective needs.

  Attributes:
    seconds: time that it takes if it has its links to itself.
    channels: channels that it uses.
    hbm_share: share of a chip's HBM bandwidth that it takes while it has its links to itself.
  """

  seconds: float
  channels: frozenset[Channel]
  hbm_share: float


def transfer_of(
  collective: Operation, topology: Topology, coordinates: Coordinates | None
) -> Transfer:
  """Returns what a collective needs.

  Without coordinates it uses all channels, and the pairs of a permutation are taken as neighbors.

  Args:
    collective: operation of the kind "collective".
    topology: slice that the program was compiled for.
    coordinates: places of the devices, or None if they are not known.
  """
  if collective.opcode == "collective-permute":
    channels, loads = _routes(collective, topology, coordinates)
    seconds = loads * collective.result_bytes / topology.chip.link_bytes_per_second
  else:
    channels = _channels_of_groups(collective, topology, coordinates)
    seconds = topology.collective_seconds(
      collective.opcode, collective.whole_bytes, _sides_of_groups(collective, topology, coordinates)
    )
  passes = _HBM_PASSES.get(collective.opcode, _HBM_PASSES_OF_MOVING)
  hbm_seconds = passes * collective.whole_bytes / topology.chip.hbm_bytes_per_second
  return Transfer(
    seconds=seconds, channels=channels, hbm_share=hbm_seconds / seconds if seconds else 0.0
  )


def _channels_along(topology: Topology, axes: set[int]) -> frozenset[Channel]:
  return frozenset(
    (place, axis, direction)
    for place in itertools.product(*map(range, topology.sides))
    for axis in axes
    for direction in ((1, -1) if topology.sides[axis] > 2 else (1,))
  )


def _all_channels(topology: Topology) -> frozenset[Channel]:
  return _channels_along(topology, {axis for axis, side in enumerate(topology.sides) if side > 1})


def _channels_of_groups(
  collective: Operation, topology: Topology, coordinates: Coordinates | None
) -> frozenset[Channel]:
  """Returns all channels along the axes on which devices of a group differ."""
  if coordinates is None or not collective.groups:
    return _all_channels(topology)
  places = [[coordinates[device] for device in group] for group in collective.groups]
  return _channels_along(
    topology,
    {
      axis
      for axis in range(len(topology.sides))
      if any(len({place[axis] for place in group}) > 1 for group in places)
    },
  )


def _sides_of_groups(
  collective: Operation, topology: Topology, coordinates: Coordinates | None
) -> tuple[int, ...]:
  """Returns the number of chips of a group along each axis.

  A group whose places are not known, or that does not fill a box, is assumed to lie along one axis,
  which gives an upper bound of the time.
  """
  devices = collective.group_devices
  if devices is None or devices == topology.devices:
    return topology.sides
  if coordinates is not None:
    places = zip(*(coordinates[device] for device in collective.groups[0]), strict=True)
    sides = tuple(len(set(along_axis)) for along_axis in places)
    if math.prod(sides) == devices:
      return sides
  return (devices,)


def _routes(
  permutation: Operation, topology: Topology, coordinates: Coordinates | None
) -> tuple[frozenset[Channel], int]:
  """Returns the channels of a permutation, and how many of its pairs the busiest link serves.

  Each pair's array goes along one axis after the other, on each the shorter way around.
  """
  if coordinates is None:
    channels = _all_channels(topology)
    return channels, 1 if channels else 0
  loads = collections.Counter(
    hop
    for source, target in permutation.groups
    for hop in _hops(coordinates[source], coordinates[target], topology.sides)
  )
  return frozenset(loads), max(loads.values(), default=0)


def _hops(
  source: tuple[int, ...], target: tuple[int, ...], sides: tuple[int, ...]
) -> Iterator[Channel]:
  """Yields the channel of each hop of a route."""
  place = list(source)
  for axis, side in enumerate(sides):
    forward = (target[axis] - source[axis]) % side
    direction = 1 if forward <= side / 2 else -1
    for _ in range(min(forward, side - forward)):
      yield tuple(place), axis, direction
      place[axis] = (place[axis] + direction) % side
