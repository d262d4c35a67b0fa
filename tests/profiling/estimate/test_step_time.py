import dataclasses

import pytest

from profiling.compile.topology import parse_topology
from profiling.compiler_text.hlo_cycles import Operation
from profiling.compiler_text.kernel_profiles import KernelProfile
from profiling.compiler_text.schedule import Event, Loop
from profiling.estimate.step_time import attribute, estimate

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
    ("jit(step)/shard_map/jvp(stage_3)/while/body/dot_general", ("stage_3", "forward")),
    ("jit(step)/shard_map/transpose(jvp(stage_3))/while/body/mul", ("stage_3", "backward")),
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
    {("stage_1", "forward"): 1e-3, ("stage_1", "backward"): 1e-3, ("optimizer", ""): 5e-4}
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
  assert time.seconds == pytest.approx(2 * V4.collective_seconds("all-gather", 400, 4))


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
    {("stage_2", "backward", "kernel"): 3 * seconds}
  )


def test_a_kernel_without_a_profile_is_an_error_and_not_free():
  with pytest.raises(KeyError):
    estimated([operation("kernel")])
