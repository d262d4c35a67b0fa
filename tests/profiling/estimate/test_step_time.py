import dataclasses

import pytest

from profiling.compile.topology import parse_topology
from profiling.compiler_text.hlo_cycles import Operation
from profiling.compiler_text.kernel_profiles import KernelProfile
from profiling.estimate.step_time import attribute, estimate

V4 = parse_topology("v4:2x2x1")


def operation(kind="convolution", cycles=0, executions=1, source="", result_bytes=0):
  return Operation(
    name="x",
    kind=kind,
    cycles=cycles,
    executions=executions,
    source=source,
    result_bytes=result_bytes,
  )


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
  time = estimate(
    [
      operation(cycles=1050, executions=1000, source="jvp(stage_1)/a"),
      operation(cycles=2100, executions=500, source="transpose(jvp(stage_1))/a"),
      operation("copy or layout", cycles=525_000, source="optimizer/b"),
    ],
    V4,
  )
  assert time.by("part", "direction") == pytest.approx(
    {("stage 1", "forward"): 1e-3, ("stage 1", "backward"): 1e-3, ("optimizer", ""): 5e-4}
  )
  assert time.by("kind") == pytest.approx({("convolution",): 2e-3, ("copy or layout",): 5e-4})
  assert time.seconds == pytest.approx(2.5e-3)


def test_collectives_take_their_bytes_over_the_links():
  psum = operation("collective", cycles=10**9, executions=2, result_bytes=10**8)
  time = estimate([dataclasses.replace(psum, opcode="all-reduce")], V4)
  assert time.collective_bytes == 2 * 10**8
  assert time.seconds == pytest.approx(V4.collective_seconds("all-reduce", 2 * 10**8))
  assert time.rows[0].part == "collectives"


def test_parts_that_are_scattered_and_gathered_are_counted_whole():
  gather, scatter = (
    dataclasses.replace(
      operation("collective", result_bytes=size_bytes), opcode=opcode, group_devices=4
    )
    for opcode, size_bytes in (("all-gather", 400), ("reduce-scatter", 100))
  )
  time = estimate([gather, scatter], V4)
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
  time = estimate([kernel], V4, {"x": profile})
  assert time.by("part", "direction", "kind") == pytest.approx(
    {("stage 2", "backward", "kernel"): 3 * seconds}
  )


def test_a_kernel_without_a_profile_is_an_error_and_not_free():
  with pytest.raises(KeyError):
    estimate([operation("kernel")], V4)
