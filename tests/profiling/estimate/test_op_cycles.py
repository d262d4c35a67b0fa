"""Tested on programs that the real TPU compiler made, for chips that are not there."""

import pytest

from nfnet.errors import UserError
from profiling.compile.op_worker import YARDSTICK, OpRequest
from profiling.compiler_text.chips import CHIPS
from profiling.estimate.op_cycles import (
  CompiledOp,
  compile_ops,
  make_rows,
  summary,
)
from tests.profiling.op_rows import PROFILE, ROWS

V4 = CHIPS["v4"]
LABEL = "conv 1x1 7px 1536->3072"


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory):
  request = OpRequest(topology="v4:2x2x1", images=32, kernels="reference", only="matmul")
  programs, _ = compile_ops(request, cache=tmp_path_factory.mktemp("cache"))
  return make_rows(programs, None, chip=V4, images=32)


@pytest.mark.slow
def test_the_yardstick_is_the_matrix_product_whose_schedule_is_known(yardstick):
  (row,) = yardstick
  assert (row.label, row.direction) == (YARDSTICK, "yardstick")
  (kernel,) = row.kernels
  # 573,083 bundles were counted independently; see test_bundle_cycles.py.
  assert kernel.bundles == pytest.approx(573_083, rel=0.02)
  assert kernel.vmem_bytes == 4 * 2**20 + 0x9000
  assert kernel.hbm_bytes == (2 * 8 + 1) * 4096**2 * 2
  assert row.kernel_cycles == kernel.bundles
  # Half of the multiply-adds on four 128 x 128 units.
  assert row.matrix_cycles == pytest.approx(4096**3 / 2 / 4 / 128**2, rel=2e-3)
  assert row.bound_cycles == row.matrix_cycles
  assert row.bound_cycles < row.xla_cycles < 2 * row.bound_cycles


@pytest.fixture(scope="module")
def update(tmp_path_factory):
  """The largest update, by the reference and by the kernel."""

  def compiled(kernels):
    label = "sgd_agc 1x1x2048x4096"
    request = OpRequest(topology="v4:2x2x1", images=32, kernels=kernels, only=label)
    return compile_ops(request, cache=tmp_path_factory.mktemp("cache"))[0]

  (row,) = make_rows(compiled("reference"), compiled("pallas"), chip=V4, images=32)
  return row


def test_an_update_is_bound_by_its_bytes(update):
  # Parameter, gradient and buffer in, parameter and buffer out; the learning rate is a word.
  seconds = 20 * 2048 * 4096 / 1.2e12
  assert update.memory_cycles == pytest.approx(seconds * 1.05e9, rel=1e-3)
  assert update.bound_cycles == update.memory_cycles
  assert update.calls["F7+"] == 1
  assert update.bound_cycles < update.xla_cycles < 10 * update.bound_cycles


def test_the_kernel_does_an_update_in_one_pass(update):
  (kernel,) = update.kernels
  # Besides: sums of squares, eight for each column, which may stay on the chip.
  assert kernel.hbm_bytes == pytest.approx(20 * 2048 * 4096, rel=2e-3)
  assert kernel.spills == 0
  assert kernel.bundles < 0.5 * update.bound_cycles
  assert update.kernel_cycles < update.bound_cycles / 0.95
  assert update.xla_cycles > 2 * update.kernel_cycles


def op(cycles, *kernels, argument_bytes=0, output_bytes=0):
  return CompiledOp(
    operation_cycles=cycles,
    kernels=kernels,
    argument_bytes=argument_bytes,
    output_bytes=output_bytes,
  )


def test_backward_is_what_both_cost_on_top_of_forward():
  reference = {
    (LABEL, "forward"): op(100, argument_bytes=1000, output_bytes=400),
    (LABEL, "both"): op(350, argument_bytes=1400, output_bytes=1600),
  }
  pallas = {
    (LABEL, "forward"): op(10, PROFILE),
    (LABEL, "both"): op(20, PROFILE, PROFILE),
  }
  forward, backward = make_rows(reference, pallas, chip=V4, images=32)
  assert (forward.direction, backward.direction) == ("forward", "backward")
  assert (forward.xla_cycles, backward.xla_cycles) == (100, 250)
  assert forward.kernel_cycles == pytest.approx(1010)
  assert backward.kernel_cycles == pytest.approx(1010)
  macs = 7 * 7 * 1536 * 3072 * 32
  assert forward.matrix_cycles == pytest.approx(macs / 2 / 4 / 128**2, rel=2e-3)
  assert backward.matrix_cycles == pytest.approx(2 * forward.matrix_cycles)
  # 1000 in and 400 out; 1400 in and gradients of 1200 out.
  assert forward.memory_cycles == pytest.approx(1400 / 1.2e12 * 1.05e9)
  assert backward.memory_cycles == pytest.approx(2600 / 1.2e12 * 1.05e9)


def test_the_yardstick_is_beside_the_same_product_by_xla():
  """The kernel is among the reference's programs: it is never compiled otherwise."""
  programs = {
    (YARDSTICK, "yardstick"): op(0, PROFILE),
    (YARDSTICK, "yardstick by XLA"): op(700_000, argument_bytes=2000, output_bytes=1000),
  }
  (row,) = make_rows(programs, None, chip=V4, images=32)
  assert (row.label, row.direction) == (YARDSTICK, "yardstick")
  assert row.kernel_cycles == pytest.approx(1000)
  assert row.xla_cycles == 700_000
  # Half of the multiply-adds on four 128 x 128 units.
  assert row.matrix_cycles == pytest.approx(4096**3 / 2 / 4 / 128**2, rel=2e-3)


TAIL = "se_residual after 768->1536 7px squeeze 768"
WIDE_BYTES = 500
TAIL_BY_XLA = {
  (TAIL, "forward"): op(1000, argument_bytes=2000, output_bytes=WIDE_BYTES),
  (TAIL, "both"): op(5000, argument_bytes=2500, output_bytes=1700),
  (TAIL, "convolution forward"): op(300, argument_bytes=1100, output_bytes=WIDE_BYTES),
  (TAIL, "convolution both"): op(1900, argument_bytes=1600, output_bytes=1300),
}
TAIL_WITH_KERNELS = {
  (TAIL, "forward"): op(100, PROFILE, PROFILE),
  (TAIL, "both"): op(300, *[PROFILE] * 5),
  (TAIL, "convolution forward"): op(10, PROFILE),
  (TAIL, "convolution both"): op(40, *[PROFILE] * 3),
}


def test_squeeze_excite_is_what_it_costs_on_top_of_the_convolution():
  forward, backward = make_rows(TAIL_BY_XLA, TAIL_WITH_KERNELS, chip=V4, images=32)
  assert (forward.direction, backward.direction) == ("forward", "backward")
  assert forward.xla_cycles == 1000 - 300
  assert backward.xla_cycles == (5000 - 1000) - (1900 - 300)
  assert forward.kernel_cycles == pytest.approx(1000 + 100 - 10)
  assert backward.kernel_cycles == pytest.approx((3 - 2) * 1000 + (300 - 100) - (40 - 10))
  # The shortcut and the gate, in the arguments; the branch, and the result.
  assert forward.memory_cycles == pytest.approx((900 + 2 * WIDE_BYTES) / 1.2e12 * 1.05e9)
  # The branch and the gate; the gate's gradients; the cotangent.
  assert backward.memory_cycles == pytest.approx((900 + 400 + WIDE_BYTES) / 1.2e12 * 1.05e9)
  macs = 2 * 1536 * 768 * 32
  assert forward.matrix_cycles == pytest.approx(macs / 2 / 4 / 128**2, rel=2e-3)
  assert backward.matrix_cycles == pytest.approx(2 * forward.matrix_cycles)
  assert forward.calls["F0"] == 3


@pytest.mark.parametrize("direction", ["convolution forward", "convolution both"])
@pytest.mark.parametrize("by_xla", [True, False])
def test_there_is_no_difference_to_what_did_not_compile(direction, by_xla):
  failed = {(TAIL, direction): CompiledOp(error="RESOURCE_EXHAUSTED: vmem")}
  reference = TAIL_BY_XLA | (failed if by_xla else {})
  pallas = TAIL_WITH_KERNELS | ({} if by_xla else failed)
  forward, backward = make_rows(reference, pallas, chip=V4, images=32)
  needs_it = {"convolution forward": [forward, backward], "convolution both": [backward]}
  for row in (forward, backward):
    missing = row in needs_it[direction]
    assert (row.xla_cycles is None) == (missing and by_xla)
    assert (row.kernel_cycles is None) == (missing and not by_xla)
    assert row.error == ("RESOURCE_EXHAUSTED: vmem" if missing else None)


def test_where_only_the_convolution_has_a_kernel_squeeze_excite_has_none():
  with_conv_kernels = {
    (TAIL, "forward"): op(1000, PROFILE),
    (TAIL, "both"): op(5000, *[PROFILE] * 3),
    (TAIL, "convolution forward"): op(10, PROFILE),
    (TAIL, "convolution both"): op(40, *[PROFILE] * 3),
  }
  rows = make_rows(TAIL_BY_XLA, with_conv_kernels, chip=V4, images=32)
  assert [row.kernel_cycles for row in rows] == [None, None]


def test_without_a_kernel_there_is_no_ratio():
  reference = {(LABEL, "forward"): op(100), (LABEL, "both"): op(350)}
  # It was asked for, and the reference ran instead.
  rows = make_rows(reference, reference, chip=V4, images=32)
  assert [row.kernel_cycles for row in rows] == [None, None]


def test_what_does_not_compile_has_the_compilers_message():
  reference = {(LABEL, "forward"): op(100), (LABEL, "both"): op(350)}
  pallas = {
    (LABEL, "forward"): CompiledOp(error="RESOURCE_EXHAUSTED: vmem"),
    (LABEL, "both"): CompiledOp(error="RESOURCE_EXHAUSTED: vmem"),
  }
  rows = make_rows(reference, pallas, chip=V4, images=32)
  assert {row.error for row in rows} == {"RESOURCE_EXHAUSTED: vmem"}


def test_the_summary_is_of_two_networks_and_says_what_has_no_kernel():
  assert summary(ROWS) == [
    ("conv, forward", "2", "4.00", "4.00", "2 of 2"),
    ("conv, backward", "1", "4.00", "", "0 of 1"),
    ("se_residual, forward", "1", "3.00", "3.00", "1 of 1"),
  ]


def test_a_slice_that_is_not_there_is_an_error(tmp_path):
  request = OpRequest(topology="v4:2x3x1", images=32, kernels="reference", only="matmul")
  with pytest.raises(UserError, match="v4:2x3x1"):
    compile_ops(request, cache=tmp_path)
