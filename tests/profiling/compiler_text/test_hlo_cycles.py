"""Reads programs that compile_programs.py compiled (jax 0.10.2, libtpu 0.0.42.1)."""

import pytest

from profiling.compiler_text.hlo_cycles import read_operations
from tests.repository import ROOT

EXCERPTS = ROOT / "tests" / "profiling" / "excerpts"


@pytest.fixture(scope="module")
def loops():
  return (EXCERPTS / "loops.hlo").read_text()


def test_operations_in_loops_count_once_an_iteration(loops):
  found = [
    (operation.name, operation.cycles, operation.executions) for operation in read_operations(loops)
  ]
  # By hand: the outer loop runs 3 times and the inner one 4 times in it. "copy.8" and
  # "convolution_tanh_fusion.2" are in the inner body, the other three in the outer one.
  assert found == [
    ("fusion", 4814, 1),
    ("psum.7", 0, 1),
    ("dynamic-slice_bitcast_fusion.2", 3224, 3),
    ("copy.17", 2535, 3),
    ("fusion.16", 3806, 3),
    ("convolution_tanh_fusion.2", 3870, 12),
    ("copy.8", 2535, 12),
  ]
  total = sum(operation.cycles * operation.executions for operation in read_operations(loops))
  assert total == (4814 + 3 * (3224 + 2535 + 3806) + 12 * (3870 + 2535))


def test_kinds_and_sources(loops):
  operations = {operation.name: operation for operation in read_operations(loops)}
  assert {name: operation.kind for name, operation in operations.items()} == {
    "fusion": "convolution",
    "psum.7": "collective",
    "dynamic-slice_bitcast_fusion.2": "copy or layout",
    "copy.17": "copy or layout",
    "fusion.16": "convolution",
    "convolution_tanh_fusion.2": "convolution",
    "copy.8": "copy or layout",
  }
  assert operations["fusion"].source == "jit(loops)/shard_map/dot_general"
  # The compiler's own copy has the source of its loop.
  assert operations["copy.8"].source == "jit(loops)/shard_map/stage_3/while/body/closed_call/while"


def test_a_collective_has_its_bytes(loops):
  (psum,) = (o for o in read_operations(loops) if o.kind == "collective")
  assert psum.result_bytes == 512 * 512 * 2


def test_a_collectives_own_cycles_do_not_count(loops):
  lines = [
    line + ', backend_config={"estimated_cycles":"123"}' if " all-reduce(" in line else line
    for line in loops.splitlines()
  ]
  (psum,) = (o for o in read_operations("\n".join(lines)) if o.kind == "collective")
  assert psum.cycles == 0


def test_a_collective_that_another_core_does_is_counted():
  """On TPU 7x, SparseCores sum and copy while the TensorCores compute; libtpu writes this text."""
  text = """HloModule jit_step

%copied (q: f32[256]) -> f32[256] {
  %q = f32[256]{0} parameter(0)
  ROOT %copy.1 = f32[256]{0} copy(%q), backend_config={"estimated_cycles":"9223372036854775807"}
}

%called (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %all-reduce.1 = f32[256]{0} all-reduce(%p), to_apply=%add
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %all-reduce.2.call-start = ((f32[256]{0}, token[]), f32[256]{0}) call-start(%x), \
async_execution_thread="sparsecore", to_apply=%called
  %all-reduce.2.call-done = f32[256]{0} call-done(%all-reduce.2.call-start)
  %copy.2.call-start = ((f32[256]{0}, token[]), f32[256]{0}) call-start(%x), \
async_execution_thread="sparsecore", to_apply=%copied
  ROOT %copy.2.call-done = f32[256]{0} call-done(%copy.2.call-start)
}
"""
  (collective,) = read_operations(text)
  assert (collective.kind, collective.result_bytes) == ("collective", 1024)
  assert collective.executions == 1


@pytest.mark.parametrize(
  ("groups", "devices"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[16,8]<=[2,64]T(1,0)", 8),
  ],
)
def test_the_whole_of_what_a_collective_scatters(groups, devices):
  text = f"""HloModule jit_step

ENTRY %main (x: f32[256]) -> f32[64] {{
  %x = f32[256]{{0}} parameter(0)
  ROOT %reduce-scatter.1 = f32[64]{{0}} reduce-scatter(%x), channel_id=1, \
replica_groups={groups}, use_global_device_ids=true, dimensions={{0}}, to_apply=%add
}}
"""
  (collective,) = read_operations(text)
  assert (collective.opcode, collective.group_devices) == ("reduce-scatter", devices)
  assert collective.whole_bytes == 256 * devices


def test_bytes_of_a_tuple_are_those_of_its_arrays(loops):
  single = "= bf16[512,512]{1,0:T(8,128)(2,1)} all-reduce("
  assert single in loops
  pair = "= (bf16[512,512]{1,0:T(8,128)(2,1)}, f32[3,128]{1,0:T(8,128)}) all-reduce("
  (psum,) = (o for o in read_operations(loops.replace(single, pair)) if o.kind == "collective")
  assert psum.result_bytes == 512 * 512 * 2 + 3 * 128 * 4


def test_of_a_conditional_the_slowest_branch_counts():
  operations = read_operations((EXCERPTS / "branches.hlo").read_text())
  # The branch of three products, in two fusions; the other one is a single product.
  assert [(o.name, o.cycles) for o in operations if o.kind == "convolution"] == [
    ("fusion.4", 6581),
    ("fusion", 6807),
  ]


def test_a_trip_count_is_the_bound_less_the_start(loops):
  # The outer loop's bound.
  bound = "s32[]{:T(128)} constant(3)"
  assert bound in loops
  longer = read_operations(loops.replace(bound, "s32[]{:T(128)} constant(7)"))
  executions = {operation.name: operation.executions for operation in longer}
  assert executions["fusion.16"] == 7
  assert executions["copy.8"] == 28


def test_a_known_trip_count_is_taken(loops):
  marked = loops.replace(
    "while(%tuple.33), ", 'while(%tuple.33), backend_config={"known_trip_count":{"n":"5"}}, '
  )
  assert marked != loops
  assert {o.executions for o in read_operations(marked) if o.name == "fusion.16"} == {5}


def test_pallas_kernels_are_listed(loops):
  kernel = (
    '  %kernel = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", '
    'metadata={op_name="jit(f)/se_residual"}\n'
  )
  with_kernel = loops.replace("  ROOT %psum.7", kernel + "  ROOT %psum.7")
  (found,) = (o for o in read_operations(with_kernel) if o.kind == "kernel")
  assert (found.source, found.executions, found.cycles) == ("jit(f)/se_residual", 1, 0)


def test_what_cannot_be_read_is_an_error(loops):
  with pytest.raises(ValueError, match="no ENTRY"):
    read_operations("no program\n")
  with pytest.raises(ValueError, match=r"trip count of loop %while\.24 cannot be read"):
    read_operations(loops.replace("direction=LT", "direction=GT", 2))
