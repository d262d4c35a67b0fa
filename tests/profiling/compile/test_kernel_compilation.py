"""The ops' kernels, compiled for TPU v4 by the real compiler."""

import dataclasses
import json

import pytest

from kernels.tpu import VMEM_BYTES, read_tiles
from profiling.compile.op_shapes import (
  FullyConnectedShape,
  SqueezeExciteShape,
  UpdateShape,
  named_shapes,
)
from profiling.compile.op_worker import OpRequest
from profiling.compile.tile_sweep import as_text, sweep, write_tiles
from profiling.compiler_text.chips import CHIPS
from profiling.estimate.op_cycles import compile_ops, make_rows

V4 = CHIPS["v4"]
GROUPED = "conv 3x3 14px 768->768 groups 6 gelu in"
SQUEEZE_EXCITE = "se_residual after 768->1536 7px squeeze 768"


def compiled(only, cache):
  request = OpRequest(topology="v4:2x2x1", images=32, kernels="pallas", only=only)
  return compile_ops(request, cache=cache)[0]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
  programs = compiled(GROUPED, tmp_path_factory.mktemp("cache"))
  return make_rows(programs, programs, chip=V4, images=32)


def test_a_grouped_convolutions_kernels_move_everything_once(tmp_path):
  """The kernels alone, and of fewer pixels, compile in half of the time of the op below."""
  label = "3x3 768->768 groups 6 stride 1 to 7x7x32, 2 bytes"
  found = sweep("scaled_ws_conv", "v4:2x2x1", 32, label, candidates_per_kernel=1, cache=tmp_path)
  ((forward,), (backward,)) = (
    next(candidates for (_, one), candidates in found.items() if one == direction)
    for direction in ("forward", "backward")
  )
  # Of one product, at the matrix units' peak.
  matrix_cycles = 7 * 7 * 32 * 768 * 9 * 128 / 2 / 4 / 128**2
  assert matrix_cycles < forward.cycles < 1.3 * matrix_cycles
  # Input gradient and weight gradient.
  assert 2 * matrix_cycles < backward.cycles < 1.3 * 2 * matrix_cycles
  activations, weights = 7 * 7 * 32 * 768 * 2, 9 * 128 * 768 * 4
  assert forward.profile.hbm_bytes == pytest.approx(2 * activations + weights, rel=5e-3)
  assert backward.profile.hbm_bytes == pytest.approx(3 * activations + 2 * weights, rel=5e-3)
  assert max(one.profile.vmem_bytes for one in (forward, backward)) < 16 << 20


@pytest.mark.slow
def test_the_grouped_convolution_takes_little_longer_than_its_products(grouped):
  """The shape of which the networks have the most."""
  forward, backward = grouped
  assert forward.matrix_cycles == pytest.approx(42_336, rel=2e-3)
  # 90 % and more of the matrix units' peak.
  assert forward.kernel_cycles < 47_000
  # Input gradient, weight gradient and the derivative of the standardization.
  assert backward.kernel_cycles < 1.35 * backward.matrix_cycles


@pytest.mark.slow
def test_the_grouped_convolution_reads_and_writes_everything_once(grouped):
  forward, backward = (row.kernels for row in grouped)
  activations, weights = 14 * 14 * 32 * 768 * 2, 9 * 128 * 768 * 4
  (kernel,) = forward
  # Vectors: bias, gain, mean and scale of a filter.
  assert kernel.hbm_bytes == pytest.approx(2 * activations + weights, rel=5e-3)
  assert [one.hbm_bytes for one in backward] == [
    kernel.hbm_bytes,
    pytest.approx(3 * activations + 2 * weights, rel=5e-3),
    pytest.approx(3 * weights, rel=5e-3),
  ]
  assert all(one.vmem_bytes < 16 << 20 for one in backward)


def test_the_gradient_of_the_classifiers_weight_costs_little_more_than_to_write_it(tmp_path):
  label = "fully_connected 3072->1000"
  programs = compiled(label, tmp_path)
  assert not programs[label, "forward"].kernels
  (kernel,) = programs[label, "both"].kernels
  least_bytes = 2 * (3072 * 1000 + 32 * (3072 + 1000))
  assert kernel.hbm_bytes == pytest.approx(least_bytes, rel=0.1)
  assert kernel.seconds(V4) < 1.3 * kernel.hbm_bytes / V4.hbm_bytes_per_second


@pytest.mark.slow
def test_squeeze_excite_reads_and_writes_wide_arrays_as_seldom_as_it_can(tmp_path):
  programs = compiled(SQUEEZE_EXCITE, tmp_path)
  # Two kernels more than the convolution has: one each way.
  counts = {direction: len(program.kernels) for (_, direction), program in programs.items()}
  assert counts == {"convolution forward": 1, "forward": 2, "convolution both": 3, "both": 5}
  _, addition, sums, *_ = programs[SQUEEZE_EXCITE, "both"].kernels
  wide, gate = 7 * 7 * 32 * 1536 * 2, 2 * 1536 * 768 * 4
  # The branch, the shortcut and the sum; the cotangent and the branch.
  for kernel, arrays in ((addition, 3), (sums, 2)):
    assert kernel.hbm_bytes == pytest.approx(arrays * wide, rel=0.05)
    assert kernel.bundles / V4.clock_hz < kernel.seconds(V4)
    assert kernel.spills == 0
  forward, backward = make_rows(programs, programs, chip=V4, images=32)
  cycles_by_byte = V4.clock_hz / V4.hbm_bytes_per_second
  # Three wide arrays forward, two backward; the gate's weights, and backward their gradients.
  assert forward.memory_cycles == pytest.approx((3 * wide + gate) * cycles_by_byte, rel=0.01)
  assert backward.memory_cycles == pytest.approx((2 * wide + 2 * gate) * cycles_by_byte, rel=0.01)
  for row in (forward, backward):
    # Another pass over the branch would be a third and more on top.
    assert 0.9 * row.bound_cycles < row.kernel_cycles < 1.6 * row.bound_cycles


@pytest.mark.slow
def test_small_parameters_share_kernels(tmp_path):
  (program,) = compiled("159 small parameters", tmp_path).values()
  (shape,) = (one for one in named_shapes() if one.label == "sgd_agc 159 small parameters")
  # Nothing but the stem's first filters, whose rows do not fill tiles, is copied before.
  assert program.operation_cycles < 20_000
  assert len(program.kernels) == 2
  for kernel in program.kernels:
    assert not kernel.copies_overlap
    assert kernel.vmem_bytes < 16 << 20
  # Parameter, gradient and buffer in, parameter and buffer out, in whole tiles.
  least_bytes = 20 * shape.elements
  assert least_bytes < sum(kernel.hbm_bytes for kernel in program.kernels) < 2 * least_bytes


@pytest.mark.slow
def test_every_kernel_of_every_published_network_compiles(tmp_path):
  """A quarter of an hour on two cores."""
  programs = compiled("", tmp_path)
  assert {key: program.error for key, program in programs.items() if program.error} == {}
  for shape in named_shapes():
    directions = {direction for label, direction in programs if label == shape.label}
    assert len(directions) == {UpdateShape: 1, SqueezeExciteShape: 4}.get(type(shape), 2)
    for direction in directions:
      kernels = programs[shape.label, direction].kernels
      # None is a reference that ran instead; a fully connected layer has a kernel for a gradient.
      only_backward = isinstance(shape, FullyConnectedShape) and direction == "forward"
      assert bool(kernels) != only_backward
      assert all(kernel.vmem_bytes <= 16 << 20 for kernel in kernels)


# Of a wide array of squeeze-excite, and of a parameter in float32.
WIDE, UPDATED = 7 * 7 * 32 * 1536 * 2, 4 * 256 * 512


@pytest.mark.parametrize(
  ("op", "label", "hbm_bytes", "spills"),
  [
    pytest.param(
      "scaled_ws_conv",
      "3x3 768->768 groups 6 stride 2 to 7x7x32, 2 bytes",
      {"forward": None, "backward": None},
      None,
      marks=pytest.mark.slow,
    ),
    # The branch, the shortcut and the sum; the cotangent and the branch.
    ("se_residual", "7x7x32x1536, 2 bytes", {"forward": 3 * WIDE, "backward": 2 * WIDE}, 0),
    # Parameter, buffer and half as wide a gradient in, parameter and buffer out.
    ("sgd_agc", "256x512, gradient 2 bytes", {"update": 4.5 * UPDATED}, 0),
  ],
)
def test_the_sweep_ranks_tiles_and_keeps_the_best(op, label, hbm_bytes, spills, tmp_path):
  found = sweep(op, "v4:2x2x1", 32, label, candidates_per_kernel=3, cache=tmp_path)
  assert {(problem.label, direction) for problem, direction in found} == {
    (label, direction) for direction in hbm_bytes
  }
  for (_, direction), candidates in found.items():
    cycles = [one.cycles for one in candidates]
    assert len(cycles) == 3
    assert cycles == sorted(cycles)
    assert all(one.vmem_bytes <= VMEM_BYTES for one in candidates)
    assert len({str(one.tile) for one in candidates}) == 3
    if spills is not None:
      assert candidates[0].profile.spills == spills
      assert candidates[0].profile.hbm_bytes == pytest.approx(hbm_bytes[direction], rel=0.05)
  (key, *_) = found
  assert f"{found[key][0].cycles:,.0f}" in as_text(found)

  path = tmp_path / "tiles.json"
  problem, direction = key
  other = {"problem": dataclasses.asdict(problem), "direction": "another", "tile": {}}
  path.write_text(json.dumps([other, {**other, "direction": direction}]))
  write_tiles(found, path)
  entries = json.loads(path.read_text())
  assert len(entries) == 1 + len(found)
  assert other in entries
  tiles = read_tiles(path, type(problem), dict)
  assert tiles[key] == found[key][0].tile
