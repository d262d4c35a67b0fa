import itertools

import pytest

from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import CHIPS
from profiling.compiler_text.hlo_cycles import Operation
from profiling.estimate.transfers import transfer_of

V4 = parse_topology("v4:4x4x4")
# Of 64 chips, the last axis fastest, as in JAX's mesh of one axis.
COORDINATES = tuple(itertools.product(range(4), repeat=3))
BYTES = 50 * 10**6  # One link of a v4 moves them in a millisecond.


def of_all_chips(*channels, topology=V4):
  """Returns channels, of which axis and direction are given, of every chip of a slice."""
  places = itertools.product(*map(range, topology.sides))
  return {(place, *channel) for place in places for channel in channels}


ALL = of_all_chips(*itertools.product(range(3), (1, -1)))


def collective(opcode, groups):
  return Operation(
    name=opcode,
    kind="collective",
    cycles=0,
    executions=1,
    source="",
    result_bytes=BYTES,
    opcode=opcode,
    groups=groups,
  )


def permutation(move):
  """Returns the permutation in which each chip sends to the place that `move` gives."""
  numbers = {place: number for number, place in enumerate(COORDINATES)}
  return collective(
    "collective-permute",
    tuple(
      (number, numbers[tuple(side % 4 for side in move(*place))])
      for place, number in numbers.items()
    ),
  )


@pytest.mark.parametrize(
  ("move", "channels", "milliseconds"),
  [
    (lambda x, y, z: (x, y, z + 1), {(2, 1)}, 1),
    (lambda x, y, z: (x, y, z - 1), {(2, -1)}, 1),
    (lambda x, y, z: (x + 1, y, z), {(0, 1)}, 1),
    # Each link serves two pairs.
    (lambda x, y, z: (x, y + 2, z), {(1, 1)}, 2),
    (lambda x, y, z: (x + 1, y - 1, z), {(0, 1), (1, -1)}, 1),
    (lambda x, y, z: (x, y, z), set(), 0),
  ],
)
def test_a_permutation_takes_the_links_of_its_routes(move, channels, milliseconds):
  found = transfer_of(permutation(move), V4, COORDINATES)
  assert found.channels == of_all_chips(*channels)
  assert found.seconds == pytest.approx(milliseconds * 1e-3)


def test_the_two_ways_around_a_square_share_no_channel():
  """Each chip sends along one axis one way, and along the other axis the other way."""
  square = parse_topology("v4:2x2x1")
  places = ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0))
  ways = [
    transfer_of(
      collective("collective-permute", tuple((i, (i + way) % 4) for i in range(4))), square, places
    )
    for way in (1, -1)
  ]
  assert [one.seconds for one in ways] == pytest.approx([1e-3, 1e-3])
  assert len(ways[0].channels) == len(ways[1].channels) == 4
  assert not ways[0].channels & ways[1].channels


def test_without_places_a_permutation_is_between_neighbors_and_uses_all_links():
  found = transfer_of(permutation(lambda x, y, z: (x, y + 2, z)), V4, None)
  assert (found.channels, found.seconds) == (ALL, pytest.approx(1e-3))


@pytest.mark.parametrize(
  ("groups", "axes", "sides"),
  [
    (((0, 1, 2, 3), (4, 5, 6, 7)), {2}, (1, 1, 4)),
    (((0, 16, 32, 48),), {0}, (4, 1, 1)),
    (((0, 1, 4, 5),), {1, 2}, (1, 2, 2)),
    ((tuple(range(16)),), {1, 2}, (1, 4, 4)),
    # These fill no box.
    (((0, 5, 10, 15),), {1, 2}, (4,)),
    ((tuple(range(64)),), {0, 1, 2}, (4, 4, 4)),
    ((), {0, 1, 2}, (4, 4, 4)),
  ],
)
def test_a_group_uses_the_axes_on_which_its_devices_differ(groups, axes, sides):
  gather = collective("all-gather", groups)
  found = transfer_of(gather, V4, COORDINATES)
  assert found.channels == {channel for channel in ALL if channel[1] in axes}
  assert transfer_of(gather, V4, None).channels == ALL
  assert found.seconds == V4.collective_seconds("all-gather", BYTES, sides)


def test_an_axis_of_two_chips_has_one_channel():
  square = parse_topology("v4:2x2x1")
  places = tuple(itertools.product(range(2), range(2), range(1)))
  found = transfer_of(collective("all-reduce", ()), square, places)
  assert found.channels == of_all_chips((0, 1), (1, 1), topology=square)
  alone = collective("all-reduce", ((0,), (1,), (2,), (3,)))
  found = transfer_of(alone, square, places)
  assert (found.seconds, found.hbm_share) == (0, 0)


@pytest.mark.parametrize(
  ("opcode", "passes"),
  [("all-gather", 2), ("collective-permute", 2), ("reduce-scatter", 3 * 64), ("all-reduce", 5)],
)
def test_a_transfer_reads_and_writes_hbm(opcode, passes):
  """A reduce-scatter's result is one of 64 parts."""
  found = transfer_of(collective(opcode, (tuple(range(64)),)), V4, None)
  assert found.hbm_share * found.seconds == pytest.approx(passes * BYTES / 1.2e12)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("opcode", ["all-gather", "all-reduce", "reduce-scatter", "all-to-all"])
def test_no_transfer_needs_all_of_hbm(chip, opcode):
  slice_ = parse_topology(f"{chip.name}:{'x'.join('4' * (chip.links // 2))}")
  assert transfer_of(collective(opcode, ()), slice_, None).hbm_share < 1
