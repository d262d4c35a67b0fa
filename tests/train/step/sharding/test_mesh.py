import itertools
import types

import jax
import pytest

from nfnet.errors import UserError
from train.step.sharding.mesh import device_grid, make_mesh


def described(*sides, **fields):
  """Returns the devices of a v4 slice as the compiler lists them, with the first axis fastest."""
  given = dict(platform="tpu", device_kind="TPU v4", core_on_chip=0, slice_index=0) | fields
  return [
    types.SimpleNamespace(**given, coords=place[::-1])
    for place in itertools.product(*map(range, reversed(sides)))
  ]


def hops(first, second, sides):
  """Returns the number of links between two chips of a torus."""
  distances = zip(first.coords, second.coords, sides, strict=True)
  return sum(min((a - b) % side, (b - a) % side) for a, b, side in distances)


@pytest.mark.parametrize(
  ("sides", "shards"),
  [
    ((2, 2, 1), 2),
    ((2, 2, 1), 4),
    ((4, 4, 8), 8),
    ((4, 4, 8), 16),
    ((4, 4, 4), 4),
    # Half of an axis, or a part of one, goes to each row.
    ((4, 4, 4), 8),
    ((8, 8, 16), 16),
  ],
)
def test_successive_shards_are_neighbors(sides, shards):
  grid = device_grid(described(*sides), shards)
  assert grid.shape == (len(grid.flat) // shards, shards)
  assert len({device.coords for device in grid.flat}) == len(grid.flat)
  for row in grid:
    ways = [hops(*pair, sides) for pair in itertools.pairwise([*row, row[0]])]
    assert ways == [1] * shards


def test_without_coordinates_devices_keep_their_order():
  assert make_mesh(parameter_shards=4).devices.flatten().tolist() == jax.devices()


def test_devices_of_several_slices_are_an_error():
  devices = [*described(2, 2, 1), *described(2, 2, 1, slice_index=1)]
  with pytest.raises(UserError, match="of 2 TPU slices; train on one"):
    device_grid(devices, 4)


def test_devices_that_do_not_divide_are_an_error():
  with pytest.raises(UserError, match="parameter_shards=3 does not divide the 8 devices"):
    make_mesh(parameter_shards=3)
