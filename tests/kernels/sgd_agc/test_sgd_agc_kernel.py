"""The kernel of one large parameter against the reference, in the TPU interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from tests.kernels.sgd_agc.steps import (
  CLIPPING,
  HYPER_PARAMETERS,
  assert_close,
  by_kernel,
  by_reference,
  draw,
)

pytestmark = pytest.mark.usefixtures("interpreted")
FLOAT32 = ("float32", "float32")
# Shapes of the networks, smaller where only the number of blocks or chunks differs; all have more
# elements than a small parameter.
CLIPPED = [
  (3, 3, 32, 256),
  # Three blocks on two cores.
  (192, 384),
  pytest.param((1, 1, 384, 128), marks=pytest.mark.slow),
  # Units in rows: outputs do not fill the lanes, and inputs do.
  (3, 3, 128, 96),
  pytest.param((768, 192), marks=pytest.mark.slow),
]
UNCLIPPED = [
  # XLA stores these transposed: 1000 and 30,000 classes do not fill the lanes.
  (256, 1000),
  pytest.param((128, 4200), marks=pytest.mark.slow),
  # As it is.
  pytest.param((304, 128), marks=pytest.mark.slow),
  (160, 256),
]


@pytest.mark.parametrize("gradient_scale", [1e-4, 1.0])
@pytest.mark.parametrize("shape", CLIPPED)
def test_a_parameter_that_is_clipped(shape, gradient_scale):
  arrays = draw({"x": shape}, gradient_scale)
  expected = by_reference(arrays)
  assert_close(by_kernel(arrays), expected, arrays)
  # The two scales are on both sides of the clip.
  free = by_reference(arrays, clipping=None)
  is_free = np.array_equal(free.parameters["x"], expected.parameters["x"])
  assert is_free == (gradient_scale < 1)


@pytest.mark.usefixtures("on_two_cores")
def test_cores_that_share_a_parameter_do_not_race():
  arrays = draw({"x": (48, 384)})
  assert_close(by_kernel(arrays), by_reference(arrays), arrays)


@pytest.mark.parametrize("shape", UNCLIPPED)
def test_a_parameter_that_is_not_clipped(shape):
  arrays = draw({"x": shape})
  expected = by_reference(arrays, clipping=None)
  assert_close(by_kernel(arrays, clipping=None), expected, arrays)


@pytest.mark.parametrize(
  ("shape", "clipping"),
  [
    pytest.param((3, 3, 32, 256), CLIPPING, marks=pytest.mark.slow),
    ((1, 1, 272, 128), CLIPPING),
    ((3, 3, 128, 32), CLIPPING),
    ((256, 1000), None),
  ],
)
def test_gradients_that_have_traveled_in_bfloat16(shape, clipping):
  parameters, gradients, *others = draw({"x": shape})
  arrays = [parameters, {"x": gradients["x"].astype(jnp.bfloat16)}, *others]
  expected = by_reference(arrays, clipping=clipping)
  assert_close(by_kernel(arrays, clipping=clipping), expected, arrays)


@pytest.mark.parametrize(
  ("shape", "clipping"),
  [((3, 3, 32, 128), CLIPPING), ((3, 3, 32, 128), None), ((3, 3, 128, 48), CLIPPING)],
)
def test_the_average_is_kept_in_the_same_pass(shape, clipping):
  arrays = draw({"x": shape}, has_ema=True)
  changes = dict(clipping=clipping, ema_decay=jnp.float32(0.75))
  expected = by_reference(arrays, **changes)
  assert_close(by_kernel(arrays, **changes), expected, arrays)
  assert not np.array_equal(expected.emas["x"], arrays[3]["x"])


def test_each_parameter_of_a_stack_has_its_own_norms():
  arrays = draw({"x": (2, 64, 128)})
  arrays[1]["x"] = arrays[1]["x"] * jnp.asarray([1e-4, 1.0])[:, None, None]
  expected = by_reference(arrays, stacked=True)
  # The TPU interpreter does not run kernels under `jax.vmap`.
  with pltpu.force_tpu_interpret_mode(True):
    assert_close(by_kernel(arrays, stacked=True), expected, arrays, stacked=True)


@pytest.mark.parametrize(
  "shape", [(3, 3, 24, 192), pytest.param((176, 200), marks=pytest.mark.slow), (192, 192)]
)
def test_outputs_that_do_not_fill_the_last_block(shape):
  # The TPU interpreter gives results of blocks that reach over the edge in a wrong shape.
  with pltpu.force_tpu_interpret_mode(True):
    for gradient_scale in (1e-4, 1.0):
      arrays = draw({"x": shape}, gradient_scale)
      assert_close(by_kernel(arrays), by_reference(arrays), arrays)


def test_zeros_can_move_and_are_finite():
  _, gradients, *_ = draw({"x": (3, 3, 32, 128)})
  zeros = jax.tree.map(jnp.zeros_like, gradients)
  for arrays in ([zeros, gradients, zeros, None], [zeros, zeros, zeros, None]):
    assert_close(by_kernel(arrays), by_reference(arrays), arrays)


def test_gradients_of_almost_nothing_are_divided_by_the_floor():
  # Norms of 2e-8, which are above a clip of 1e-8 and below the floor of 1e-6.
  _, gradients, *_ = draw({"x": (3, 3, 32, 128)}, 1e-9)
  zeros = jax.tree.map(jnp.zeros_like, gradients)
  arrays = [zeros, gradients, zeros, None]
  expected = by_reference(arrays, clipping=jnp.float32(1e-5))
  np.testing.assert_allclose(expected.momentum_buffers["x"], 0.01 * gradients["x"], rtol=1e-5)
  assert_close(by_kernel(arrays, clipping=jnp.float32(1e-5)), expected, arrays)


@pytest.mark.parametrize(
  ("shape", "dtypes", "clipping", "reason"),
  [
    ((32, 3, 3, 3, 128), FLOAT32, CLIPPING, "neither a matrix nor a filter"),
    ((3, 3, 300, 16), FLOAT32, CLIPPING, "fill tiles"),
    ((300, 128), FLOAT32, CLIPPING, "fill tiles"),
    ((256, 1003), FLOAT32, None, "fill tiles"),
    ((4096, 128), FLOAT32, CLIPPING, "VMEM"),
    ((512, 128), ("bfloat16", "float32"), CLIPPING, "dtype"),
    ((512, 128), ("float32", "float16"), CLIPPING, "dtype"),
  ],
)
def test_says_what_it_does_not_cover(shape, dtypes, clipping, reason):
  parameter, gradient = ({"x": jnp.zeros(shape, dtype)} for dtype in dtypes)
  with pytest.raises(NotImplementedError, match=reason):
    by_kernel([parameter, gradient, parameter, None], clipping=clipping)


def test_inside_shard_map():
  """The training step calls it like this: everything is the same on each device."""
  mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
  arrays = draw({"x": (272, 128)})

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P())
  def sharded(*trees):
    return by_kernel([*trees, None], **HYPER_PARAMETERS)

  assert_close(jax.jit(sharded)(*arrays[:3]), by_reference(arrays), arrays)
