import dataclasses
import itertools

import pytest

from profiling.compile.topology import parse_topology
from profiling.compiler_text.hlo_cycles import Operation, read_operations
from profiling.compiler_text.kernel_profiles import KernelProfile
from profiling.compiler_text.schedule import Event, Loop, read_schedule
from profiling.estimate.step_time import attribute, estimate
from tests.repository import ROOT

V4 = parse_topology("v4:2x2x1")


def operation(
  kind="convolution", cycles=0, executions=1, source="", result_bytes=0, name="x", **fields
):
  return Operation(
    name=name,
    kind=kind,
    cycles=cycles,
    executions=executions,
    source=source,
    result_bytes=result_bytes,
    **fields,
  )


def one_after_another(operations):
  """Returns the schedule of operations between which nothing overlaps."""
  return tuple(Loop((Event("run", one.name),), one.executions) for one in operations)


def estimated(operations, kernels=None):
  return estimate(operations, one_after_another(operations), V4, kernels)


@pytest.mark.parametrize(
  ("source", "expected"),
  [
    ("jit(step)/shard_map/jvp(stage_3)/while/body/dot_general", ("stage 3", "forward")),
    ("jit(step)/shard_map/transpose(jvp(stage_3))/while/body/mul", ("stage 3", "backward")),
    ("transpose(jvp(stem))/reduce_sum", ("stem", "backward")),
    ("jit(step)/shard_map/optimizer/vmap()/mul", ("optimizer", "")),
    ("jit(step)/shard_map/jvp(head)/transpose(x)/dot_general", ("head", "backward")),
    ("reduce_sum", ("other", "")),
    ("", ("other", "")),
    # A part's name inside of another word is not the part.
    ("jit(system)/overhead/mul", ("other", "")),
  ],
)
def test_parts_by_their_scope(source, expected):
  assert attribute(source) == expected


def test_time_is_cycles_times_executions_over_the_clock():
  time = estimated(
    [
      operation(cycles=1050, executions=1000, source="jvp(stage_1)/a"),
      operation(cycles=2100, executions=500, source="transpose(jvp(stage_1))/a"),
      operation("copy or layout", cycles=525_000, source="optimizer/b"),
    ]
  )
  assert time.by("part", "direction") == pytest.approx(
    {("stage 1", "forward"): 1e-3, ("stage 1", "backward"): 1e-3, ("optimizer", ""): 5e-4}
  )
  assert time.by("kind") == pytest.approx({("convolution",): 2e-3, ("copy or layout",): 5e-4})
  assert time.seconds == pytest.approx(2.5e-3)


def test_collectives_take_their_bytes_over_the_links():
  psum = operation("collective", cycles=10**9, executions=2, result_bytes=10**8)
  time = estimated([dataclasses.replace(psum, opcode="all-reduce")])
  assert time.collective_bytes == 2 * 10**8
  assert time.seconds == pytest.approx(V4.collective_seconds("all-reduce", 2 * 10**8))
  assert time.rows[0].part == "collectives"


def test_parts_that_are_scattered_and_gathered_are_counted_whole():
  gather, scatter = (
    operation(
      "collective", result_bytes=size_bytes, name=opcode, opcode=opcode, groups=((0, 1, 2, 3),)
    )
    for opcode, size_bytes in (("all-gather", 400), ("reduce-scatter", 100))
  )
  time = estimated([gather, scatter])
  assert time.collective_bytes == 800
  assert time.seconds == pytest.approx(2 * V4.collective_seconds("all-gather", 400))


def kernel_profile(bundles, hbm_bytes):
  return KernelProfile(
    bundles=bundles,
    is_upper_bound=False,
    utilization={},
    spills=0,
    vmem_bytes=0,
    hbm_bytes=hbm_bytes,
  )


@pytest.mark.parametrize(
  ("profile", "seconds"),
  [
    # Issuing takes longer, or copying at 1.2e12 bytes a second, or copying is not known.
    (kernel_profile(1_050_000, 12 * 10**8), 1e-3),
    (kernel_profile(1_050_000, 12 * 10**9), 1e-2),
    (kernel_profile(1_050_000, None), 1e-3),
  ],
)
def test_a_kernel_takes_the_longer_of_issuing_and_copying(profile, seconds):
  kernel = operation("kernel", executions=3, source="transpose(jvp(stage_2))/pallas_call")
  time = estimated([kernel], {"x": profile})
  assert time.by("part", "direction", "kind") == pytest.approx(
    {("stage 2", "backward", "kernel"): 3 * seconds}
  )


def test_a_kernel_without_a_profile_is_an_error_and_not_free():
  with pytest.raises(KeyError):
    estimated([operation("kernel")])


def one_transfer(kernel_profile_, seconds):
  """Returns the time of a step with a kernel between the start and the done of a gather."""
  operations = [
    operation("kernel", source="jvp(stage_1)/pallas_call", name="kernel"),
    operation(
      "collective", result_bytes=round(seconds * 1e11 / 0.75), name="gather", opcode="all-gather"
    ),
  ]
  schedule = (Event("start", "gather"), Event("run", "kernel"), Event("done", "gather"))
  return estimate(operations, schedule, V4, {"kernel": kernel_profile_})


def test_a_collective_beside_a_kernel_counts_with_what_is_left_of_it():
  time = one_transfer(kernel_profile(1_050_000, 0), seconds=3e-3)
  assert time.by("part", "kind") == pytest.approx(
    {("stage 1", "kernel"): 1e-3, ("collectives", "collective"): 2e-3}
  )
  assert time.seconds == pytest.approx(3e-3)
  assert time.compute_seconds == pytest.approx(1e-3)
  assert time.collective_seconds == pytest.approx(3e-3)
  assert time.exposed_collective_seconds == pytest.approx(2e-3)
  assert time.seconds_without_overlap == pytest.approx(4e-3)


@pytest.mark.parametrize(
  "profile",
  [
    # It copies all the time, or its copies are not known, or they come before it computes.
    kernel_profile(1_050, 12 * 10**9),
    kernel_profile(10_500_000, None),
    dataclasses.replace(kernel_profile(5_250_000, 6 * 10**9), copies_overlap=False),
  ],
)
def test_a_kernel_that_may_need_hbm_is_slowed(profile):
  time = one_transfer(profile, seconds=3e-3)
  # The gather reads and writes 400 MB.
  assert time.by("kind") == pytest.approx(
    {("kernel",): 1e-2, ("collective",): 0, ("slowed by collectives",): 8e8 / 1.2e12}
  )
  assert time.exposed_collective_seconds == pytest.approx(8e8 / 1.2e12)


def test_an_operation_with_cycles_only_is_slowed():
  operations = [
    operation(cycles=10_500_000, name="product"),
    operation("collective", result_bytes=4 * 10**8, name="gather", opcode="all-gather"),
  ]
  schedule = (Event("start", "gather"), Event("run", "product"), Event("done", "gather"))
  time = estimate(operations, schedule, V4)
  assert time.seconds == pytest.approx(1e-2 + 8e8 / 1.2e12)


def test_without_asynchronous_collectives_nothing_overlaps():
  psum = operation("collective", executions=2, result_bytes=10**8, name="sum", opcode="all-reduce")
  time = estimated([operation(cycles=1_050_000, name="product"), psum])
  assert time.seconds == time.seconds_without_overlap
  assert time.exposed_collective_seconds == time.collective_seconds == 2 * 1.5e-3
  assert {row.kind for row in time.rows} == {"convolution", "collective"}


def test_rings_along_different_axes_run_at_once_where_places_are_known():
  slice_ = parse_topology("v4:4x4x4")
  places = tuple(itertools.product(range(4), repeat=3))
  numbers = {place: number for number, place in enumerate(places)}
  rings = [
    operation(
      "collective",
      result_bytes=50 * 10**6,
      name=f"ring_{axis}",
      opcode="collective-permute",
      groups=tuple(
        (
          number,
          numbers[tuple((side + (i == axis)) % 4 for i, side in enumerate(place))],
        )
        for place, number in numbers.items()
      ),
    )
    for axis in range(3)
  ]
  schedule = tuple(Event(action, ring.name) for action in ("start", "done") for ring in rings)
  assert estimate(rings, schedule, slice_, coordinates=places).seconds == pytest.approx(1e-3)
  assert estimate(rings, schedule, slice_).seconds == pytest.approx(3e-3)


def test_a_compiled_schedule():
  """The excerpt is of a program of compile_programs.py, whose collectives overlap with products."""
  text = (ROOT / "tests" / "profiling" / "excerpts" / "transfers.hlo").read_text()
  time = estimate(
    read_operations(text),
    read_schedule(text),
    V4,
    coordinates=tuple(itertools.product(range(2), range(2), range(1))),
  )
  array_bytes = 512 * 512 * 2
  gather, ring = 0.75 * array_bytes / 100e9, array_bytes / 50e9
  assert time.collective_seconds == pytest.approx(gather + 3 * ring)
  compute = (3224 + 1255 + 4814 + 3806 + 3 * (4814 + 3912)) / 1.05e9
  assert time.compute_seconds == pytest.approx(compute)
  # Whatever shares the links, they send all of it, and only three products and one more are beside.
  assert gather + 3 * ring < time.seconds < compute + gather + 3 * ring
  # The products of the loop take 4.6 microseconds each, which the permutations beside them save.
  saved = time.seconds_without_overlap - time.seconds
  assert 3 * 4814 / 1.05e9 * 0.8 < saved < (4 * 4814 + 3 * 3912) / 1.05e9
