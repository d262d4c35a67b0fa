"""Ops inside `shard_map`, as it checks by default what varies over the mesh.

Images are divided among two devices, which share the parameters, as in a training loop of one's
own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernels
from kernels.mesh_axes import vary_alike
from tests.kernels.exact import gelu

IMAGES = P(None, None, "data")
SCALE = jnp.float32(0.8)


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh(
    (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
  )


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def convolution_parameters(*weight):
  return draw(*weight), draw(weight[-1], seed=1), draw(weight[-1], seed=2)


def convolution(implementation):
  def op(x, parameters):
    y = kernels.scaled_ws_convolution(
      x, *parameters, activation=gelu, input_scale=SCALE, implementation=implementation
    )
    return y.result

  return op, (draw(1, 1, 32, 128), IMAGES), convolution_parameters(1, 1, 128, 128)


def convolution_with_standardized_filters(implementation):
  def op(x, parameters):
    *weight_and_gain, bias = parameters
    filters = kernels.standardize_filters(
      *weight_and_gain, dtype="float32", implementation=implementation
    )
    return kernels.standardized_convolution(x, filters, bias, implementation=implementation).result

  return op, (draw(1, 1, 32, 128), IMAGES), convolution_parameters(1, 1, 128, 128)


def squeeze_excite(implementation):
  gate = kernels.Gate(draw(128, 16) / 8, draw(16), draw(16, 128) / 4, draw(128))

  def op(wide, parameters):
    convolution, gate, skip_gain = parameters
    x, shortcut = wide
    return kernels.conv_se_residual(
      x,
      *convolution,
      shortcut,
      gate,
      skip_gain,
      SCALE,
      activation=gelu,
      implementation=implementation,
    )

  parameters = convolution_parameters(1, 1, 128, 128), gate, jnp.float32(0.5)
  wide = draw(1, 1, 32, 128), draw(1, 1, 32, 128, seed=4)
  return op, (wide, IMAGES), parameters


def sum_in_a_convolution(implementation):
  def op(wide, parameters):
    x, shortcut = wide
    (weight, gain, bias), gate, skip_gain = parameters
    filters = kernels.standardize_filters(
      weight, gain, dtype="float32", implementation=implementation
    )
    pending = kernels.standardized_conv_se(
      x, filters, bias, shortcut, gate, skip_gain, activation=gelu, implementation=implementation
    )
    return kernels.standardized_convolution_of_sum(
      pending, filters, bias, implementation=implementation
    ).result

  return op, *squeeze_excite(implementation)[1:]


def stem(implementation):
  channels = 16, 32, 64, 128

  def op(images, parameters):
    return kernels.stem_convolutions(
      images, *parameters, activation=gelu, input_scale=SCALE, implementation=implementation
    )

  layers = [
    convolution_parameters(3, 3, *pair) for pair in zip((3, *channels), channels, strict=False)
  ]
  return op, (draw(4, 16, 32, 3), IMAGES), tuple(map(tuple, zip(*layers, strict=True)))


def fully_connected(implementation):
  def op(x, parameters):
    weight, bias = parameters
    return kernels.fully_connected_layer(
      x, weight.astype(jnp.bfloat16), bias, dtype="bfloat16", implementation=implementation
    )

  return op, (draw(32, 128), P("data")), (draw(128, 256), draw(256))


@pytest.mark.parametrize("implementation", ["reference", "pallas"])
@pytest.mark.parametrize(
  "case",
  [
    convolution,
    convolution_with_standardized_filters,
    squeeze_excite,
    sum_in_a_convolution,
    stem,
    fully_connected,
  ],
)
def test_gradients_of_shared_parameters_are_sums_over_the_devices(case, implementation, mesh):
  op, (images, spec), parameters = case(implementation)

  def gradients(images, parameters):
    def loss(parameters):
      return jnp.sum(op(images, parameters).astype(jnp.float32) ** 2)

    return jax.grad(loss)(parameters)

  sharded = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(spec, P()), out_specs=P()))
  traced = sharded.trace(images, parameters)
  expected = jax.jit(gradients)(images, parameters)
  actual = traced.lower().compile()(images, parameters)
  for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    largest = np.abs(theirs).max()
    # Of fully connected layers, both parts are rounded to bfloat16 before they are added up.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-7 * largest)
  # A TPU would run the kernels, whose derivative rules were checked here.
  assert ("pallas_call" in str(traced.jaxpr)) == (implementation == "pallas")


def test_operands_vary_over_the_axes_of_all_of_them():
  mesh = jax.make_mesh((2, 2), ("row", "column"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def kinds(*operands):
    found = vary_alike(*operands, None)
    assert found[-1] is None
    assert {jax.typeof(one).manual_axis_type.varying for one in found[:-1]} == {
      frozenset(("row", "column"))
    }
    return jax.tree.map(lambda one: jax.lax.psum(one, ("row", "column")), found[:-1])

  jax.eval_shape(
    jax.shard_map(kinds, mesh=mesh, in_specs=(P("row"), P("column"), P()), out_specs=P()),
    *(jax.ShapeDtypeStruct((4,), jnp.float32),) * 3,
  )


def test_outside_of_shard_map_nothing_changes():
  operands = jnp.ones(2), {"one": 3.0, "other": None}
  assert vary_alike(*operands)[0] is operands[0]
  assert vary_alike(*operands)[1] == operands[1]
