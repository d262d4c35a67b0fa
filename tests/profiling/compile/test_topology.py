import pytest

from nfnet.errors import UserError
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import CHIPS


def test_counts_chips_and_devices():
  megacore = parse_topology("v4:4x4x4")
  # One device is a chip of two cores.
  assert (megacore.chips, megacore.devices, megacore.name) == (64, 64, "v4:4x4x4")
  single_cores = parse_topology("v3:2x2")
  assert (single_cores.chips, single_cores.devices) == (4, 8)


@pytest.mark.parametrize("name", ["v4", "v4:2x2", "v4:2x2x0", "v9:2x2", "v4:axb", "v3:2x2x1", ""])
def test_what_is_no_slice_is_an_error_that_names_it(name):
  with pytest.raises(UserError, match=f"topology '{name}'"):
    parse_topology(name)


@pytest.mark.parametrize("name", ["v4:3x3x3", "v4:2x3x1", "v5e:1x1", "v4:100x100x100"])
def test_what_the_compiler_has_no_hosts_for_is_refused_with_what_is_valid(name):
  with pytest.raises(UserError, match=f"topology '{name}': .* even, .* at most 9216 chips"):
    parse_topology(name)


@pytest.mark.parametrize(
  ("name", "seconds"),
  [
    # Four chips on a square, each with a link to two others: 2 * 3/4 * 1e9 bytes over 100 GB/s.
    ("v4:2x2x1", 0.015),
    # Two links along each of three axes: 2 * 63/64 * 1e9 bytes over 300 GB/s.
    ("v4:4x4x4", 2 * 63 / 64 / 300),
    ("v3:4x4", 2 * 15 / 16 / 280),
  ],
)
def test_a_sum_over_all_chips_takes_its_bytes_over_their_links(name, seconds):
  topology = parse_topology(name)
  assert topology.collective_seconds("all-reduce", 10**9) == pytest.approx(seconds)
  # A sum is scattered and gathered.
  for half in ("reduce-scatter", "all-gather"):
    assert topology.collective_seconds(half, 10**9, topology.sides) == pytest.approx(seconds / 2)


def test_a_group_within_a_slice_has_the_links_of_its_axes():
  topology = parse_topology("v4:4x4x4")
  expected = 3 / 4 * 10**9 / (2 * topology.chip.link_bytes_per_second)
  assert topology.collective_seconds("all-gather", 10**9, (4,)) == pytest.approx(expected)
  expected = 15 / 16 * 10**9 / (4 * topology.chip.link_bytes_per_second)
  assert topology.collective_seconds("all-gather", 10**9, (4, 1, 4)) == pytest.approx(expected)
  assert topology.collective_seconds("all-reduce", 10**9, (1,)) == 0


@pytest.mark.parametrize(
  ("name", "operations_a_cycle"),
  [
    # Units a core times multiply-adds a cycle of each.
    ("v3", 2 * 128 * 128),
    ("v4", 4 * 128 * 128),
    ("v5e", 4 * 128 * 128),
    ("v5p", 4 * 128 * 128),
    ("v6e", 2 * 2 * 256 * 256),
    ("tpu7x", 2 * 2 * 256 * 256),
  ],
)
def test_peaks_are_those_of_the_matrix_units(name, operations_a_cycle):
  chip = CHIPS[name]
  flops = chip.cores * 2 * operations_a_cycle * chip.clock_hz
  assert flops == pytest.approx(chip.peak_flops, rel=0.003)
