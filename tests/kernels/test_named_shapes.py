"""Kernels at every shape of the published networks, with the tiles that are used for 32 images.

As the plain interpreter runs them: the TPU interpreter, which looks for races, would take days.
Smaller shapes of the same structure run under it in the other tests of this folder.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.scaled_ws_conv import reference, tile
from kernels.scaled_ws_conv.tile import choose
from kernels.sgd_agc.small_tpu import is_small
from profiling.op_shapes import ConvShape, ResidualShape, StemShape, UpdateShape, named_shapes
from tests.kernels import (
  exact,
  test_se_residual_kernel,
  test_sgd_agc_kernel,
  test_sgd_agc_small_kernel,
  test_stem_kernel,
)
from tests.kernels import test_scaled_ws_conv_kernel as test_conv

IMAGES = 32
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def interpreted():
  with pltpu.force_tpu_interpret_mode(True):
    yield


def named(kind):
  chosen = [shape for shape in named_shapes() if isinstance(shape, kind)]
  return pytest.mark.parametrize("shape", chosen, ids=lambda shape: shape.label)


def jitted(function, operands, cotangent):
  """Value and gradients."""
  return jax.jit(functools.partial(exact.value_and_gradients, function))(operands, cotangent)


@named(ConvShape)
def test_convolution(shape):
  operands, cotangent, static = test_conv.problem(
    shape.pixels,
    shape.pixels,
    IMAGES,
    shape.in_channels,
    shape.out_channels,
    shape.kernel_pixels,
    stride=shape.stride,
    groups=shape.groups,
    pool=shape.pool,
    dtype="bfloat16",
  )
  returns = shape.returns_mean, shape.returns_input
  cotangents = (
    cotangent,
    test_conv.draw(5, IMAGES, shape.out_channels) if shape.returns_mean else None,
    test_conv.draw(6, *operands[0].shape, dtype="bfloat16") if shape.returns_input else None,
  )
  activation = exact.gelu if shape.activates_input else None

  def exactly(x, *parameters):
    y = exact.convolve(x, *parameters, 0.7, **static, activation=activation)
    return y, jnp.mean(y, axis=(0, 1)) if returns[0] else None, x if returns[1] else None

  expected = exact.in_float64(exactly, operands, cotangents)
  more = dict(activation=activation, returns_mean=returns[0], returns_input=returns[1])
  errors, theirs = (
    exact.relative_errors(
      jax.jit(
        lambda operands, cotangents, f=function: test_conv.run(
          f, operands, cotangents, static, **more
        )
      )(operands, cotangents),
      expected,
    )
    for function in (test_conv.kernel, reference.scaled_ws_conv)
  )
  assert max(errors) < test_conv.tolerance(operands, cotangent)
  for ours, by_reference in zip(errors, theirs, strict=True):
    assert ours < test_conv.ERROR_OF_REFERENCE["bfloat16"] * by_reference + 2.0**-24
  (geometry,) = shape.geometries(IMAGES)
  assert geometry.images == IMAGES
  # What ran are the tiles that a sweep has found, not the likely best ones.
  for direction in ("forward", "backward"):
    assert choose(geometry, direction).tile == tile._chosen()[geometry.name, direction]


@named(StemShape)
def test_stem(shape):
  operands, cotangent = test_stem_kernel.problem(224, 224, IMAGES, shape.channels, "bfloat16")
  expected = exact.in_float64(
    lambda *operands: exact.stem(*operands, 0.8, activation=exact.gelu), operands, cotangent
  )
  errors, theirs = (
    exact.relative_errors(
      jitted(lambda *o, f=f: f(*o, test_stem_kernel.SCALE), operands, cotangent), expected
    )
    for f in (
      test_stem_kernel.kernel,
      functools.partial(reference.stem, **test_stem_kernel.STATIC),
    )
  )
  assert max(errors) < test_stem_kernel.ROUNDINGS * test_stem_kernel.EPSILON["bfloat16"]
  for ours, by_reference in zip(errors, theirs, strict=True):
    # Of biases, both are sums in float32.
    assert ours < 1.25 * by_reference + 2.0**-24


@named(ResidualShape)
def test_residual(shape):
  wide = shape.pixels, shape.pixels, IMAGES, shape.channels
  operands, keep, cotangent = test_se_residual_kernel.problem(*wide, "bfloat16")
  actual, expected = (
    jitted(lambda *o, f=f: f(*o, keep), operands, cotangent)
    for f in (test_se_residual_kernel.kernel, test_se_residual_kernel.by_xla)
  )
  for ours, theirs in zip(actual, expected, strict=True):
    ours, theirs = (np.asarray(x.astype(jnp.float32)) for x in (ours, theirs))
    terms = np.prod(wide) / theirs.size
    tolerance = 4 * 2.0**-9 * np.sqrt(max(terms, 4)) * max(np.abs(theirs).max(), 1.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@named(UpdateShape)
def test_update(shape):
  if len(shape.shapes) > 1:
    shapes = {f"{i}": one for i, one in enumerate(shape.shapes)}
    arrays = test_sgd_agc_small_kernel.draw(shapes)[:3]
    expected = test_sgd_agc_small_kernel.expected_step([*arrays, None])
    actual = test_sgd_agc_small_kernel.kernel_step(
      *arrays, **test_sgd_agc_small_kernel.HYPER_PARAMETERS
    )
    test_sgd_agc_small_kernel.agree(actual, expected, shapes)
    return
  (one,) = shape.shapes
  assert not is_small(one, stacked=False)
  clipping = test_sgd_agc_kernel.CLIPPING if shape.clipped else None
  arguments = dict(test_sgd_agc_kernel.HYPER_PARAMETERS, clipping=clipping)
  arrays = test_sgd_agc_kernel.draw(one)
  expected = test_sgd_agc_kernel.reference.sgd_agc(*arrays, **arguments)
  test_sgd_agc_kernel.agree(test_sgd_agc_kernel.kernel_step(*arrays, **arguments), expected, one)
