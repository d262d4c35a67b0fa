"""Kernels at every shape of the published networks, with the tiles that are used for 32 images.

The plain interpreter runs them: the TPU interpreter, which looks for races, would take days. The
other tests of this folder run smaller shapes of the same structure under that one.
"""

import functools

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.fully_connected.gradient_tpu import weight_gradient
from kernels.fully_connected.tile import choose as blocks_of_gradient
from kernels.scaled_ws_conv import reference
from kernels.scaled_ws_conv.problem import Problem
from kernels.scaled_ws_conv.tile import CHOSEN, Tile, choose
from kernels.sgd_agc.problem import is_small
from kernels.tpu import read_tiles
from profiling.compile.op_shapes import (
  ConvShape,
  FullyConnectedShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
  named_shapes,
)
from tests.kernels import exact
from tests.kernels.fully_connected import test_fully_connected_kernel
from tests.kernels.scaled_ws_conv import test_scaled_ws_conv_kernel as test_conv
from tests.kernels.se_residual import test_se_residual_kernel
from tests.kernels.sgd_agc import steps
from tests.kernels.stem import test_stem_kernel

IMAGES = 32
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def plainly_interpreted():
  with pltpu.force_tpu_interpret_mode(True):
    yield


def named(kind):
  chosen = [shape for shape in named_shapes() if isinstance(shape, kind)]
  return pytest.mark.parametrize("shape", chosen, ids=lambda shape: shape.label)


def jitted(function, operands, cotangent):
  """Returns value and gradients."""
  return jax.jit(functools.partial(exact.value_and_gradients, function))(operands, cotangent)


def ran_with_chosen_tiles(shape):
  """Checks that the tiles were those that a sweep has found, not the likely best ones."""
  problem, *_ = shape.problems(IMAGES)
  assert problem.images == IMAGES
  chosen = read_tiles(CHOSEN, Problem, Tile)
  for direction in ("forward", "backward"):
    assert choose(problem, direction).tile == chosen[problem, direction]


@named(ConvShape)
def test_convolution(shape):
  operands, cotangent, static = test_conv.problem(
    shape.pixels,
    shape.pixels,
    IMAGES,
    shape.in_channels,
    shape.out_channels,
    shape.filter_pixels,
    stride=shape.stride,
    groups=shape.groups,
    pool=shape.pool,
    dtype="bfloat16",
  )
  cotangents = (
    cotangent,
    test_conv.draw(6, *operands[0].shape, dtype="bfloat16") if shape.returns_input else None,
  )
  activation = exact.gelu if shape.activates_input else None

  def exactly(x, *parameters):
    y = exact.convolve(x, *parameters, 0.7, **static, activation=activation)
    return y, x if shape.returns_input else None

  expected = exact.in_float64(exactly, operands, cotangents)
  more = dict(activation=activation, returns_input=shape.returns_input)
  errors, theirs = (
    exact.relative_errors(
      jax.jit(
        lambda operands, cotangents, f=function: test_conv.run(
          f, operands, cotangents, static, **more
        )
      )(operands, cotangents),
      expected,
    )
    for function in (test_conv.kernel, reference.scaled_ws_convolution)
  )
  assert max(errors) < test_conv.tolerance(operands, cotangent)
  for ours, by_reference in zip(errors, theirs, strict=True):
    assert ours < test_conv.ERROR_OF_REFERENCE["bfloat16"] * by_reference + 2.0**-24
  ran_with_chosen_tiles(shape)


@named(StemShape)
def test_stem(shape):
  operands, cotangent = test_stem_kernel.problem(224, 224, IMAGES, shape.channels, "bfloat16")
  expected = exact.in_float64(
    lambda *operands: exact.stem_convolutions(*operands, 0.8, activation=exact.gelu),
    operands,
    cotangent,
  )
  errors, theirs = (
    exact.relative_errors(
      jitted(lambda *o, f=f: f(*o, test_stem_kernel.SCALE), operands, cotangent), expected
    )
    for f in (test_stem_kernel.kernel, test_stem_kernel.by_xla)
  )
  assert max(errors) < test_stem_kernel.ROUNDINGS * test_stem_kernel.EPSILON["bfloat16"]
  for ours, by_reference in zip(errors, theirs, strict=True):
    # Of biases, both are sums in float32.
    assert ours < 1.25 * by_reference + 2.0**-24


@named(SqueezeExciteShape)
def test_squeeze_excite(shape):
  conv = shape.convolution
  problem = test_se_residual_kernel.problem(
    conv.pixels, conv.pixels, IMAGES, conv.in_channels, conv.out_channels, "bfloat16"
  )

  def compiled(function, operands, keep, cotangent):
    of_operands = test_se_residual_kernel.of_operands(function, keep)
    return jitted(of_operands, operands, cotangent)

  test_se_residual_kernel.check(*problem, run=compiled)
  ran_with_chosen_tiles(shape)


@named(FullyConnectedShape)
def test_fully_connected_layer(shape):
  sizes = IMAGES, shape.inputs, shape.outputs
  x, cotangent = (test_fully_connected_kernel.drawn(IMAGES, n) for n in sizes[1:])
  gradient = weight_gradient(x, cotangent, blocks=blocks_of_gradient(*sizes, itemsize=2))
  test_fully_connected_kernel.assert_is_the_gradient(gradient, x, cotangent)


@named(UpdateShape)
def test_update(shape):
  shapes = {f"{i}": one for i, one in enumerate(shape.shapes)}
  assert {is_small(one, stacked=False) for one in shape.shapes} == {len(shapes) > 1}
  arrays = steps.draw(shapes)
  clipping = steps.CLIPPING if shape.clipped else None
  expected = steps.by_reference(arrays, clipping=clipping)
  steps.assert_close(steps.by_kernel(arrays, clipping=clipping), expected, arrays)
