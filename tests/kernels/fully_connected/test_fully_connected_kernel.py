"""The kernel of the weight's gradient, as the TPU interpreter runs it, looking for races."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kernels.fully_connected import pallas, reference
from kernels.fully_connected.gradient_tpu import weight_gradient
from kernels.fully_connected.tile import Blocks

pytestmark = pytest.mark.usefixtures("interpreted")


def drawn(*shape, dtype="bfloat16", seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_is_the_gradient(gradient, x, cotangent):
  """Compares with float64, up to the rounding of the result and of float32 sums."""
  expected = np.asarray(x, np.float64).T @ np.asarray(cotangent, np.float64)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(gradient, np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
  ("inputs", "outputs", "blocks"),
  [
    pytest.param(256, 256, Blocks(False, 128, 256), id="two blocks of rows"),
    pytest.param(128, 512, Blocks(False, 128, 128), id="four blocks of columns"),
    pytest.param(128, 10, Blocks(True, 10, 128), id="by output, few outputs"),
    pytest.param(128, 300, Blocks(True, 128, 128), id="by output, a block that sticks out"),
  ],
)
@pytest.mark.parametrize("images", [16, 21])
def test_against_float64(images, inputs, outputs, blocks):
  x, cotangent = drawn(images, inputs), drawn(images, outputs, seed=1)
  assert_is_the_gradient(weight_gradient(x, cotangent, blocks=blocks), x, cotangent)


@pytest.mark.usefixtures("on_two_cores")
def test_cores_that_share_the_blocks_do_not_race():
  x, cotangent = drawn(16, 256), drawn(16, 256, seed=1)
  gradient = weight_gradient(x, cotangent, blocks=Blocks(False, 128, 128))
  assert_is_the_gradient(gradient, x, cotangent)


@pytest.mark.parametrize("outputs", [256, 10])
def test_the_layer_and_its_gradients_are_those_of_the_reference(outputs):
  operands = drawn(16, 128, dtype="float32"), drawn(128, outputs), drawn(outputs, dtype="float32")
  cotangent = drawn(16, outputs, dtype="float32", seed=2)

  def with_gradients(layer):
    result, pull_back = jax.vjp(functools.partial(layer, dtype=jnp.dtype("bfloat16")), *operands)
    return result, pull_back(cotangent)

  ours, expected = map(
    with_gradients, (pallas.fully_connected_layer, reference.fully_connected_layer)
  )
  np.testing.assert_array_equal(ours[0], expected[0])
  for own, other in zip(ours[1][::2], expected[1][::2], strict=True):
    np.testing.assert_array_equal(own, other)
  # The cotangent is rounded, as XLA rounds it on a TPU.
  weight, rounded = ours[1][1], cotangent.astype(jnp.bfloat16)
  assert_is_the_gradient(weight, operands[0].astype(jnp.bfloat16), rounded)
  assert weight.dtype == expected[1][1].dtype


@pytest.mark.parametrize(
  ("weight", "dtype", "kernel_count"),
  [
    pytest.param((128, 256, "bfloat16"), "bfloat16", 1, id="bfloat16"),
    pytest.param((128, 256, "float32"), "bfloat16", 0, id="a weight in float32"),
    pytest.param((128, 256, "bfloat16"), "float32", 0, id="a product in float32"),
    pytest.param((100, 60, "bfloat16"), "bfloat16", 0, id="lanes that are not filled"),
  ],
)
def test_what_the_kernel_computes(weight, dtype, kernel_count):
  inputs, outputs, weight_dtype = weight

  def loss(weight):
    layer = functools.partial(pallas.fully_connected_layer, dtype=jnp.dtype(dtype))
    return jnp.sum(layer(drawn(16, inputs), weight, jnp.zeros(outputs)))

  program = jax.make_jaxpr(jax.grad(loss))(drawn(inputs, outputs, dtype=weight_dtype))
  assert str(program).count("name=fully_connected_gradient") == kernel_count


def test_inside_shard_map_each_device_has_its_own_gradient():
  mesh = Mesh(np.array(jax.devices()[:2]), ("shard",))

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("shard"), out_specs=P("shard"))
  def gradients(x, cotangent):
    return weight_gradient(x[0], cotangent[0], blocks=Blocks(False, 128, 128))[None]

  x, cotangent = drawn(2, 16, 128), drawn(2, 16, 128, seed=1)
  for gradient, *own in zip(gradients(x, cotangent), x, cotangent, strict=True):
    assert_is_the_gradient(gradient, *own)
