import pytest

from profiling.compile.op_shapes import op_shapes
from profiling.compile.topology import parse_topology
from profiling.estimate.expected import (
  OPCODES,
  expected_collective_seconds,
  expected_ops,
  expected_step,
)
from profiling.estimate.stored import read_stored


def test_an_op_takes_its_kernels_cycles_at_the_clock_of_a_v4():
  expected = expected_ops()
  row = next(row for row in read_stored("ops.json")["rows"] if row["label"].startswith("stem"))
  seconds = expected.seconds[row["label"], row["direction"]]
  assert seconds == pytest.approx(row["kernel_cycles"] / 1.05e9)


def test_there_is_an_estimate_of_every_op_of_the_stored_step():
  known = {label for label, _ in expected_ops().seconds}
  assert {shape.label for shape in op_shapes(expected_step().request["variant"])} <= known


def test_the_rows_of_the_step_add_up_to_it():
  expected = expected_step()
  assert sum(row.seconds for row in expected.rows) == pytest.approx(expected.seconds)
  assert expected.topology.name == expected.request["topology"]


@pytest.mark.parametrize(("name", "times"), [("psum", 2), ("all_gather", 1), ("psum_scatter", 1)])
def test_collectives_take_their_bytes_over_two_links_of_each_chip(name, times):
  seconds = expected_collective_seconds(name, 4 * 10**9, parse_topology("v4:2x2x1"))
  assert seconds == pytest.approx(times * 3 / 4 * 4e9 / (2 * 50e9))
  assert name in OPCODES
