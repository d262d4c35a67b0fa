"""The kernels against the reference, as the TPU interpreter runs them: with races looked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from kernels.se_residual import kernel_tpu, reference
from tests.kernels import exact

kernel = functools.partial(kernel_tpu.se_residual, branch_scale=reference.branch_scale, alpha=0.2)
by_xla = functools.partial(reference.se_residual, alpha=0.2)
# Of the relative error: roundings of the scale, its product with the branch, and the sum.
ROUNDINGS = 3
EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-9}


@pytest.fixture(autouse=True)
def interpreted():
  with pltpu.force_tpu_interpret_mode(
    pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  ):
    yield
  pltpu.reset_tpu_interpret_mode_state()


def problem(height, width, images, channels, dtype="float32"):
  """Operands that are differentiated, the mask of stochastic depth, and the cotangent."""
  generator = np.random.default_rng(0)

  def draw(*shape, scale=1.0, dtype="float32"):
    return jnp.asarray(scale * generator.standard_normal(shape), dtype)

  wide = height, width, images, channels
  squeeze = 16
  operands = (
    draw(*wide, dtype=dtype),
    draw(images, channels),
    draw(*wide, dtype=dtype),
    draw(channels, squeeze, scale=0.1),
    draw(squeeze),
    draw(squeeze, channels, scale=0.3),
    draw(channels),
    draw(),
  )
  # The first image is kept, the second is dropped.
  keep = jnp.asarray(np.arange(images) % 2 == 0, jnp.float32)
  return operands, keep, draw(*wide, dtype=dtype)


def scaled_addition(branch, shortcut, scale):
  return shortcut + scale[None, None] * branch


@pytest.mark.parametrize(
  "shape",
  [
    # Each core has half of the images, or half of the channels, or there is one core's work.
    (6, 2, 32, 128),
    (3, 4, 16, 256),
    (2, 3, 16, 384),
    (5, 7, 64, 256),
  ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_addition_against_float64(shape, dtype):
  (branch, mean, shortcut, *_), _, cotangent = problem(*shape, dtype)
  operands = branch, shortcut, mean
  expected = exact.in_float64(scaled_addition, operands, cotangent)
  actual = exact.value_and_gradients(kernel_tpu.add_scaled, operands, cotangent)
  assert [one.dtype for one in actual] == [dtype, dtype, dtype, jnp.float32]
  errors = exact.relative_errors(actual, expected)
  # The scale's gradient is a sum over pixels in float32.
  assert max(errors) < ROUNDINGS * EPSILON[dtype] * np.sqrt(shape[0] * shape[1])
  in_dtype = lambda *operands: scaled_addition(*operands[:2], operands[2].astype(dtype))  # noqa: E731
  theirs = exact.relative_errors(exact.value_and_gradients(in_dtype, operands, cotangent), expected)
  for ours, by_reference in zip(errors, theirs, strict=True):
    assert ours < 1.25 * by_reference + EPSILON["float32"]


@pytest.mark.parametrize(
  ("shape", "dtype"),
  [((3, 4, 32, 128), "float32"), ((5, 3, 3, 256), "float32"), ((4, 4, 1, 128), "bfloat16")],
)
@pytest.mark.parametrize("drops", [False, True])
def test_against_the_reference(shape, dtype, drops):
  operands, keep, cotangent = problem(*shape, dtype)
  keep = keep if drops else None
  actual, expected = (
    exact.value_and_gradients(lambda *o, f=function: f(*o, keep), operands, cotangent)
    for function in (kernel, by_xla)
  )
  for ours, theirs in zip(actual, expected, strict=True):
    assert ours.dtype == theirs.dtype
    ours, theirs = (np.asarray(x.astype(jnp.float32)) for x in (ours, theirs))
    # Sums over pixels and channels in another order; each term is rounded twice on each side.
    terms = np.prod(shape) / theirs.size
    tolerance = 4 * EPSILON[dtype] * np.sqrt(max(terms, 4)) * max(np.abs(theirs).max(), 1.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_a_dropped_image_is_its_shortcut_exactly():
  operands, keep, _ = problem(2, 2, 16, 128, "bfloat16")
  result = kernel(*operands, keep)
  np.testing.assert_array_equal(result[:, :, 1::2], operands[2][:, :, 1::2])
  assert not np.array_equal(result[:, :, ::2], operands[2][:, :, ::2])


def test_gradients_under_shard_map_are_those_of_one_device():
  operands, keep, cotangent = problem(2, 2, 128, 128)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def gradients(branch, mean, shortcut, cotangent, keep, *parameters):
    operands = branch, mean, shortcut, *parameters
    result = exact.value_and_gradients(lambda *o: kernel(*o, keep), operands, cotangent)
    return *result[:4], *(jax.lax.psum(one, "data") for one in result[4:])

  wide, narrow = P(None, None, "data"), P("data")
  sharded = jax.jit(
    jax.shard_map(
      gradients,
      mesh=mesh,
      in_specs=(wide, narrow, wide, wide, narrow, *[P()] * 5),
      out_specs=(wide, wide, narrow, wide, *[P()] * 5),
      # The TPU interpreter stops on a machine of few cores; the plain one knows no varying arrays.
      check_vma=False,
    )
  )
  with pltpu.force_tpu_interpret_mode(True):
    actual = sharded(*operands[:3], cotangent, keep, *operands[3:])
    expected = exact.value_and_gradients(lambda *o: kernel(*o, keep), operands, cotangent)
  for ours, theirs in zip(actual, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1))


@pytest.mark.parametrize(
  ("shape", "dtype", "reason"),
  [
    ((2, 2, 1, 96), "float32", "channels that do not fill"),
    ((2, 2, 1, 128), "float16", "activations other"),
    ((2, 2048, 16, 128), "float32", "VMEM"),
  ],
)
def test_says_what_it_does_not_cover(shape, dtype, reason):
  operands, keep, _ = problem(*shape, dtype)
  with pytest.raises(NotImplementedError, match=reason):
    kernel(*operands, keep)
