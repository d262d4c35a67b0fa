"""The kernel against the reference, as the TPU interpreter runs it: with races looked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from kernels.sgd_agc import kernel_tpu, reference

kernel_step = functools.partial(
  kernel_tpu.sgd_agc,
  parameter_norm_floor=reference.PARAMETER_NORM_FLOOR,
  gradient_norm_floor=reference.GRADIENT_NORM_FLOOR,
)
HYPER_PARAMETERS = dict(
  average=None,
  learning_rate=jnp.float32(0.1),
  momentum=jnp.float32(0.9),
  weight_decay=jnp.float32(2e-5),
  average_decay=None,
)
CLIPPING = jnp.float32(0.01)
FLOAT32 = ("float32", "float32")
# Shapes of the networks, smaller where only the number of blocks differs.
CLIPPED = [
  (1, 1, 128, 256),
  (3, 3, 128, 256),
  # Three blocks on two cores.
  (192, 384),
  (3, 3, 64, 128),
  (32, 128),
  (1, 1, 2048, 128),
]
UNCLIPPED = [
  # XLA has these the other way round: 1000 and 30,000 classes do not fill the lanes.
  (256, 1000),
  (128, 4200),
  # As it is.
  (96, 128),
  (40, 256),
]


@pytest.fixture(autouse=True)
def interpreted():
  with pltpu.force_tpu_interpret_mode(
    pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  ):
    yield
  pltpu.reset_tpu_interpret_mode_state()


def draw(shape, gradient_scale=1.0, seed=0):
  generator = np.random.default_rng(seed)
  scales = (1.0, gradient_scale, 1.0)
  return [jnp.asarray(scale * generator.standard_normal(shape), jnp.float32) for scale in scales]


def agree(actual, expected, shape):
  # Float32 sums of other orders: relative 2^-24 x sqrt(the values of a unit), twice for a quotient.
  rows = np.prod(shape[:-1])
  tolerance = 2 * 2**-24 * np.sqrt(rows)
  names = ("parameter", "buffer", "average")
  for name, ours, theirs in zip(names, actual[:3], expected[:3], strict=True):
    if theirs is None:
      assert ours is None
      continue
    largest = np.abs(np.asarray(theirs)).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest, err_msg=name)
  np.testing.assert_allclose(
    actual[3],
    expected[3],
    rtol=2**-24 * np.sqrt(rows * shape[-1]),
  )


@pytest.mark.parametrize("gradient_scale", [1e-4, 1.0])
@pytest.mark.parametrize("shape", CLIPPED)
def test_what_is_clipped(shape, gradient_scale):
  arrays = draw(shape, gradient_scale)
  expected = reference.sgd_agc(*arrays, **HYPER_PARAMETERS, clipping=CLIPPING)
  actual = kernel_step(*arrays, **HYPER_PARAMETERS, clipping=CLIPPING)
  agree(actual, expected, shape)
  # The two scales are on both sides of the clip.
  free = reference.sgd_agc(*arrays, **HYPER_PARAMETERS, clipping=None)
  assert np.array_equal(free[0], expected[0]) == (gradient_scale < 1)


@pytest.mark.parametrize("shape", UNCLIPPED)
def test_what_is_not_clipped(shape):
  arrays = draw(shape)
  expected = reference.sgd_agc(*arrays, **HYPER_PARAMETERS, clipping=None)
  agree(kernel_step(*arrays, **HYPER_PARAMETERS, clipping=None), expected, shape)


@pytest.mark.parametrize(
  ("shape", "clipping"),
  [((3, 3, 128, 256), CLIPPING), ((1, 1, 48, 128), CLIPPING), ((256, 1000), None)],
)
def test_gradients_that_have_traveled_in_bfloat16(shape, clipping):
  parameter, gradient, buffer = draw(shape)
  arrays = (parameter, gradient.astype(jnp.bfloat16), buffer)
  expected = reference.sgd_agc(*arrays, **HYPER_PARAMETERS, clipping=clipping)
  actual = kernel_step(*arrays, **HYPER_PARAMETERS, clipping=clipping)
  assert {x.dtype for x in actual if x is not None} == {jnp.dtype("float32")}
  agree(actual, expected, shape)


@pytest.mark.parametrize("clipping", [CLIPPING, None])
def test_the_average_is_kept_in_the_same_pass(clipping):
  shape = (3, 3, 64, 128)
  average = jnp.asarray(np.random.default_rng(5).standard_normal(shape), jnp.float32)
  arguments = {**HYPER_PARAMETERS, "average": average, "average_decay": jnp.float32(0.75)}
  arrays = draw(shape)
  expected = reference.sgd_agc(*arrays, **arguments, clipping=clipping)
  agree(kernel_step(*arrays, **arguments, clipping=clipping), expected, shape)
  assert not np.array_equal(expected[2], average)


@pytest.mark.parametrize("shape", [(3, 3, 8, 192), (16, 200), (192, 192)])
def test_outputs_that_do_not_fill_the_last_block(shape):
  # The TPU interpreter gives results of blocks that reach over the edge in a wrong shape.
  with pltpu.force_tpu_interpret_mode(True):
    for gradient_scale in (1e-4, 1.0):
      arrays = draw(shape, gradient_scale)
      expected = reference.sgd_agc(*arrays, **HYPER_PARAMETERS, clipping=CLIPPING)
      agree(kernel_step(*arrays, **HYPER_PARAMETERS, clipping=CLIPPING), expected, shape)


def test_zeros_can_move_and_are_finite():
  shape = (3, 3, 128, 128)
  zeros = jnp.zeros(shape, jnp.float32)
  _, gradient, _ = draw(shape)
  for parts in ((zeros, gradient, zeros), (zeros, zeros, zeros)):
    expected = reference.sgd_agc(*parts, **HYPER_PARAMETERS, clipping=CLIPPING)
    agree(kernel_step(*parts, **HYPER_PARAMETERS, clipping=CLIPPING), expected, shape)


def test_gradients_of_almost_nothing_are_divided_by_the_floor():
  shape = (3, 3, 128, 128)
  zeros = jnp.zeros(shape, jnp.float32)
  # Norms of 3e-8, which are above a clip of 1e-8 and below the floor of 1e-6.
  gradient = draw(shape, 1e-9)[1]
  arguments = (zeros, gradient, zeros)
  expected = reference.sgd_agc(*arguments, **HYPER_PARAMETERS, clipping=jnp.float32(1e-5))
  actual = kernel_step(*arguments, **HYPER_PARAMETERS, clipping=jnp.float32(1e-5))
  np.testing.assert_allclose(expected[1], 0.01 * gradient, rtol=1e-5)
  agree(actual, expected, shape)


@pytest.mark.parametrize(
  ("shape", "dtypes", "clipping", "reason"),
  [
    ((128,), FLOAT32, CLIPPING, "vectors"),
    ((), FLOAT32, CLIPPING, "scalars"),
    ((3, 3, 3, 16), FLOAT32, CLIPPING, "fill tiles"),
    ((12, 128), FLOAT32, CLIPPING, "fill tiles"),
    ((128, 1003), FLOAT32, None, "fill tiles"),
    ((4096, 128), FLOAT32, CLIPPING, "VMEM"),
    ((128, 128), ("bfloat16", "float32"), CLIPPING, "dtype"),
    ((128, 128), ("float32", "float16"), CLIPPING, "dtype"),
  ],
)
def test_says_what_it_does_not_cover(shape, dtypes, clipping, reason):
  parameter, gradient = (jnp.zeros(shape, dtype) for dtype in dtypes)
  arrays = (parameter, gradient, parameter)
  with pytest.raises(NotImplementedError, match=reason):
    kernel_step(*arrays, **HYPER_PARAMETERS, clipping=clipping)


def test_inside_shard_map():
  """As the training step calls it: everything the same on each device."""
  shape = (128, 256)
  mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
  step = functools.partial(kernel_step, **HYPER_PARAMETERS, clipping=CLIPPING)
  sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P()))
  arrays = draw(shape)
  expected = reference.sgd_agc(*arrays, **HYPER_PARAMETERS, clipping=CLIPPING)
  agree(sharded(*arrays), expected, shape)
