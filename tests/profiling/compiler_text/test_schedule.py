"""Reads a program that compile_programs.py compiled (jax 0.10.2, libtpu 0.0.42.1)."""

import pytest

from profiling.compiler_text.hlo_cycles import read_operations
from profiling.compiler_text.schedule import read_schedule, unroll
from tests.repository import ROOT


@pytest.fixture(scope="module")
def transfers():
  return (ROOT / "tests" / "profiling" / "excerpts" / "transfers.hlo").read_text()


def timed_events(text):
  """Returns the events of operations that take time, as words."""
  names = {operation.name for operation in read_operations(text)}
  return [
    f"{event.action} {event.name}" for event in unroll(read_schedule(text)) if event.name in names
  ]


def test_events_are_in_the_order_of_the_schedule(transfers):
  # The gather is in flight during the whole loop; each trip has a permutation beside its product.
  trip = [
    "start collective-permute-start",
    "run fusion.20",
    "done collective-permute-start",
    "run add.10",
  ]
  assert timed_events(transfers) == [
    "run copy.11",
    "run slice.7",
    "start all-gather-start",
    *(3 * trip),
    "run fusion.7",
    "done all-gather-start",
    "run fusion.10",
  ]


def test_a_transfer_has_the_bytes_of_its_result(transfers):
  """The type of a start also has the operand and what the compiler keeps about the transfer."""
  bytes_of = {
    operation.opcode: operation.result_bytes
    for operation in read_operations(transfers)
    if operation.kind == "collective"
  }
  assert bytes_of == {"all-gather": 512 * 512 * 2, "collective-permute": 512 * 512 * 2}


@pytest.mark.parametrize("start", ["all-gather-start", "collective-permute-start"])
@pytest.mark.parametrize("read", [read_operations, read_schedule])
def test_a_start_without_a_done_is_an_error(transfers, start, read):
  done = f"-done(%{start})"
  lines = [line for line in transfers.splitlines() if done not in line]
  assert len(lines) == len(transfers.splitlines()) - 1
  with pytest.raises(ValueError, match=f"collective %{start} starts in %.* and is not done there"):
    read("\n".join(lines))


def test_the_order_of_a_program_that_is_not_scheduled_is_refused(transfers):
  with pytest.raises(ValueError, match="not scheduled"):
    read_schedule(transfers.replace("is_scheduled=true, ", ""))


BACKGROUND = """HloModule jit_step, is_scheduled=true

%scattered (p: f32[256]) -> f32[64] {
  %p = f32[256]{0} parameter(0)
  ROOT %reduce-scatter.1 = f32[64]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, \
dimensions={0}, to_apply=%add
}

%copied (q: f32[256]) -> f32[256] {
  %q = f32[256]{0} parameter(0)
  ROOT %copy.1 = f32[256]{0} copy(%q), backend_config={"estimated_cycles":"7"}
}

ENTRY %main (x: f32[256]) -> f32[64] {
  %x = f32[256]{0} parameter(0)
  %start.1 = ((f32[256]{0}), f32[64]{0}, u32[]) ASYNC
  %start.2 = ((f32[256]{0}), f32[256]{0}, u32[]) call-start(%x), to_apply=%copied
  %product = f32[256]{0} dot(%x, %x), backend_config={"estimated_cycles":"100"}
  %done.2 = f32[256]{0} call-done(%start.2)
  ROOT %done.1 = f32[64]{0} DONE(%start.1)
}
"""


@pytest.mark.parametrize(
  ("start", "done", "name"),
  [
    ("async-start(%x), calls=%scattered", "async-done", "reduce-scatter.1"),
    ("call-start(%x), to_apply=%scattered", "call-done", "reduce-scatter.1"),
    (
      "reduce-scatter-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add",
      "reduce-scatter-done",
      "start.1",
    ),
  ],
)
def test_a_collective_in_the_background_is_a_pair(start, done, name):
  text = BACKGROUND.replace("ASYNC", start).replace("DONE", done)
  assert timed_events(text) == [f"start {name}", "run product", f"done {name}"]
  (collective,) = (one for one in read_operations(text) if one.kind == "collective")
  assert (collective.opcode, collective.whole_bytes) == ("reduce-scatter", 1024)


def test_a_collective_that_repeats_in_the_background_is_an_error():
  loop = """%twice (c: f32[256]) -> f32[64] {
  %c = f32[256]{0} parameter(0)
  %first = f32[64]{0} call(%c), to_apply=%scattered
  ROOT %second = f32[64]{0} call(%c), to_apply=%scattered
}

ENTRY"""
  text = BACKGROUND.replace("ASYNC", "async-start(%x), calls=%twice").replace("DONE", "async-done")
  with pytest.raises(ValueError, match=r"%start\.1 starts collective %reduce-scatter\.1 several"):
    read_schedule(text.replace("ENTRY", loop))
