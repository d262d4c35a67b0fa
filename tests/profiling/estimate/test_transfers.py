import types

import pytest
from jax.experimental import mesh_utils

from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import CHIPS
from profiling.compiler_text.hlo_cycles import Operation
from profiling.estimate.transfers import device_coordinates, transfer_of

V4 = parse_topology("v4:4x4x4")
# Of 64 chips, the last axis fastest.
COORDINATES = device_coordinates(V4)
ALL = {(axis, direction) for axis in range(3) for direction in (1, -1)}
BYTES = 50 * 10**6  # One link of a v4 moves them in a millisecond.


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
  assert found.channels == channels
  assert found.seconds == pytest.approx(milliseconds * 1e-3)


def test_without_places_a_permutation_is_between_neighbors_and_uses_all_links():
  found = transfer_of(permutation(lambda x, y, z: (x, y + 2, z)), V4, None)
  assert (found.channels, found.seconds) == (ALL, pytest.approx(1e-3))


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    (((0, 1, 2, 3), (4, 5, 6, 7)), {2}),
    (((0, 16, 32, 48),), {0}),
    (((0, 1, 4, 5),), {1, 2}),
    ((tuple(range(64)),), {0, 1, 2}),
    ((), {0, 1, 2}),
  ],
)
def test_a_group_uses_the_axes_on_which_its_devices_differ(groups, axes):
  gather = collective("all-gather", groups)
  found = transfer_of(gather, V4, COORDINATES)
  assert found.channels == {channel for channel in ALL if channel[0] in axes}
  assert transfer_of(gather, V4, None).channels == ALL
  assert found.seconds == V4.collective_seconds("all-gather", BYTES, gather.group_devices)


def test_an_axis_of_two_chips_has_one_channel():
  square = parse_topology("v4:2x2x1")
  found = transfer_of(collective("all-reduce", ()), square, device_coordinates(square))
  assert found.channels == {(0, 1), (1, 1)}
  alone = collective("all-reduce", ((0,), (1,), (2,), (3,)))
  found = transfer_of(alone, square, device_coordinates(square))
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


@pytest.mark.parametrize("name", ["v4:2x2x1", "v4:4x2x1", "v4:2x2x4", "v4:4x4x8"])
def test_places_are_those_of_jax_meshes(name):
  """The devices are listed like the compiler's, with the first axis fastest."""
  slice_ = parse_topology(name)
  x, y, z = slice_.sides
  devices = [
    types.SimpleNamespace(
      platform="tpu", device_kind="TPU v4", core_on_chip=0, slice_index=0, coords=(i, j, k)
    )
    for k in range(z)
    for j in range(y)
    for i in range(x)
  ]
  mesh = mesh_utils.create_device_mesh((slice_.chips, 1), devices)
  assert [device.coords for device in mesh.flat] == device_coordinates(slice_)


@pytest.mark.parametrize(("name", "shards"), [("v4:4x4x4", 4), ("v3:4x4", 1), ("v5p:2x2x2", 1)])
def test_places_in_other_meshes_are_not_known(name, shards):
  assert device_coordinates(parse_topology(name), shards) is None
