import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from kernels import scaled_ws_convolution
from kernels.scaled_ws_conv.formulas import VARIANCE_FLOOR, standardize_weight
from kernels.scaled_ws_conv.reference import activate, average_pool

BATCH = 2


def scaled_gelu(x):
  return 1.7015043497085571 * jax.nn.gelu(x, approximate=True)


def gelu_float64(x):
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  return 1.7015043497085571 * 0.5 * x * (1 + np.tanh(inner))


def standardize_float64(weight, gain):
  weight = weight.astype(np.float64)
  fan_in = np.prod(weight.shape[:3])
  mean = weight.mean(axis=(0, 1, 2))
  scale = gain / np.sqrt(np.maximum(weight.var(axis=(0, 1, 2)) * fan_in, VARIANCE_FLOOR))
  return (weight - mean) * scale


def pool_float64(x):
  height, width, n, c = x.shape
  result = np.zeros((-(-height // 2), -(-width // 2), n, c))
  for i in range(result.shape[0]):
    for j in range(result.shape[1]):
      result[i, j] = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(0, 1))
  return result


def same_padding(size, kernel, stride):
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def convolve_float64(x, weight, stride, groups):
  kh, kw, per_group, outputs = weight.shape
  x = np.pad(
    x, (same_padding(x.shape[0], kh, stride), same_padding(x.shape[1], kw, stride), (0, 0), (0, 0))
  )
  out_shape = tuple((size - k) // stride + 1 for size, k in zip(x.shape[:2], (kh, kw), strict=True))
  result = np.zeros((*out_shape, x.shape[2], outputs))
  for i in range(out_shape[0]):
    for j in range(out_shape[1]):
      window = x[i * stride : i * stride + kh, j * stride : j * stride + kw]
      for o in range(outputs):
        first = o * groups // outputs * per_group
        part = window[..., first : first + per_group]
        result[i, j, :, o] = np.einsum("hwnc,hwc->n", part, weight[..., o])
  return result


def operands(rng, *, height, width, channels, outputs, kernel, groups):
  shapes = (
    (height, width, BATCH, channels),
    (kernel, kernel, channels // groups, outputs),
    (outputs,),
    (outputs,),
  )
  return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 5), (1, 3)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolution(height, width, kernel, stride, groups):
  rng = np.random.default_rng(0)
  x, weight, gain, bias = operands(
    rng, height=height, width=width, channels=6, outputs=9, kernel=kernel, groups=groups
  )
  arrays = map(jnp.asarray, (x, weight, gain, bias))
  actual = scaled_ws_convolution(*arrays, stride=stride, groups=groups).result
  expected = convolve_float64(x, standardize_float64(weight, gain), stride, groups) + bias
  assert actual.dtype == jnp.float32
  # Sums of up to 54 products of float32: 2^-24 * 54 = 3e-6 at worst.
  np.testing.assert_allclose(actual, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (1, 1), (4, 3)])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("activated", [False, True])
def test_activation_scale_and_pool(height, width, pool, activated):
  rng = np.random.default_rng(1)
  x, weight, gain, bias = operands(
    rng, height=height, width=width, channels=4, outputs=8, kernel=1, groups=1
  )
  actual = scaled_ws_convolution(
    *map(jnp.asarray, (x, weight, gain, bias)),
    pool=pool,
    activation=scaled_gelu if activated else None,
    input_scale=jnp.float32(0.7) if activated else None,
  ).result
  expected = 0.7 * gelu_float64(x.astype(np.float64)) if activated else x
  expected = pool_float64(expected) if pool else expected
  expected = convolve_float64(expected, standardize_float64(weight, gain), 1, 1) + bias
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_pooling_at_an_odd_edge_is_the_mean_of_what_is_there():
  x = jnp.arange(9, dtype=jnp.float32).reshape(3, 3, 1, 1)
  np.testing.assert_array_equal(average_pool(x)[..., 0, 0], [[2.0, 3.5], [6.5, 8.0]])


def test_a_mean_far_from_zero_costs_no_precision():
  rng = np.random.default_rng(0)
  # A hundred deviations: squares summed relative to zero would lose 6e-4 of the variance.
  weight = (1 + 0.01 * rng.standard_normal((3, 3, 16, 8))).astype(np.float32)
  gain = np.ones(8, np.float32)
  expected = standardize_float64(weight, gain)
  actual = standardize_weight(jnp.asarray(weight), jnp.asarray(gain), "released")
  # What is left is 2^-24 of the mean, which is a hundred times as large as the values.
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@given(
  seed=st.integers(0, 2**32 - 1),
  shift=st.floats(-3, 3, width=32),
  factor=st.floats(0.125, 8, width=32),
)
@settings(deadline=None, max_examples=25)
def test_shifting_and_scaling_a_filter_changes_nothing(seed, shift, factor):
  rng = np.random.default_rng(seed)
  # Variance times fan-in is about 27, far above the floor.
  weight = rng.standard_normal((3, 3, 3, 5)).astype(np.float32)
  gain = rng.standard_normal(5).astype(np.float32)
  expected = standardize_weight(jnp.asarray(weight), jnp.asarray(gain), "released")
  changed = standardize_weight(
    jnp.asarray(weight * np.float32(factor) + np.float32(shift)), jnp.asarray(gain), "released"
  )
  # At worst the shift is 24 deviations: 2^-24 * 24 / sqrt(27), and the same again in the mean.
  np.testing.assert_allclose(changed, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 64, 8), (3, 3, 16, 8)])
def test_standardized_filters_have_mean_0_and_variance_gain_squared_over_fan_in(shape):
  rng = np.random.default_rng(2)
  weight = rng.standard_normal(shape).astype(np.float32) * 3 + 1
  gain = rng.uniform(0.5, 2, 8).astype(np.float32)
  result = np.asarray(
    standardize_weight(jnp.asarray(weight), jnp.asarray(gain), "released"), np.float64
  )
  fan_in = np.prod(shape[:3])
  np.testing.assert_allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(result.var(axis=(0, 1, 2)) * fan_in, gain**2, rtol=1e-5)


def test_a_constant_filter_is_finite_and_so_is_its_gradient():
  weight, gain = jnp.full((3, 3, 4, 2), 0.5), jnp.ones(2)
  np.testing.assert_allclose(standardize_weight(weight, gain, "released"), 0, atol=1e-5)
  gradient = jax.grad(lambda w: jnp.sum(jnp.sin(standardize_weight(w, gain, "released"))))(weight)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 2), (3, 2, 2), (3, 2, 1)]
)
@pytest.mark.parametrize("pool", [False, True])
def test_gradients_agree_with_finite_differences(kernel, stride, groups, pool):
  rng = np.random.default_rng(3)
  arrays = operands(rng, height=5, width=4, channels=4, outputs=4, kernel=kernel, groups=groups)

  def function(*arrays):
    result = scaled_ws_convolution(
      # `check_grads` perturbs with NumPy arrays.
      *map(jnp.asarray, arrays),
      stride=stride,
      groups=groups,
      pool=pool,
      activation=jnp.tanh,
      input_scale=jnp.float32(0.8),
    ).result
    weights = np.random.default_rng(7).standard_normal(result.shape)
    return jnp.sum(result * jnp.asarray(weights, jnp.float32))

  arguments = tuple(map(jnp.asarray, arrays))
  # Differences over 1e-2 in float32: third derivatives and rounding leave about 1e-3.
  check_grads(jax.jit(function), arguments, order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 2), (3, 2, 2)])
def test_convolution_gradients_are_those_of_xla(kernel, stride, groups):
  """On a CPU they are computed another way."""
  rng = np.random.default_rng(4)
  x, weight, gain, bias = operands(
    rng, height=6, width=5, channels=4, outputs=6, kernel=kernel, groups=groups
  )
  x, weight = jnp.asarray(x), jnp.asarray(weight)

  def ours(x, weight):
    return scaled_ws_convolution(
      x, weight, jnp.asarray(gain), jnp.asarray(bias), stride=stride, groups=groups
    ).result

  def xla(x, weight):
    y = jax.lax.conv_general_dilated(
      x,
      standardize_weight(weight, jnp.asarray(gain), "released"),
      (stride, stride),
      "SAME",
      dimension_numbers=("HWNC", "HWIO", "HWNC"),
      feature_group_count=groups,
    )
    return y + jnp.asarray(bias)[None, None, None, :]

  expected, pullback = jax.vjp(jax.jit(xla), x, weight)
  actual, our_pullback = jax.vjp(jax.jit(ours), x, weight)
  cotangent = jnp.asarray(rng.standard_normal(expected.shape), jnp.float32)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  for ours_gradient, xla_gradient in zip(our_pullback(cotangent), pullback(cotangent), strict=True):
    np.testing.assert_allclose(ours_gradient, xla_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [scaled_gelu, jax.nn.silu, jnp.tanh])
def test_activate_has_the_gradient_of_its_function(function):
  rng = np.random.default_rng(5)
  x = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
  cotangent = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
  expected_value, expected_pullback = jax.vjp(function, x)
  value, pullback = jax.vjp(lambda x: activate(function, x), x)
  np.testing.assert_allclose(value, expected_value, rtol=1e-6)
  np.testing.assert_allclose(pullback(cotangent)[0], expected_pullback(cotangent)[0], rtol=1e-5)


def test_bfloat16_stays_bfloat16_and_is_close_to_float32():
  rng = np.random.default_rng(6)
  arrays = tuple(
    map(
      jnp.asarray,
      operands(rng, height=6, width=6, channels=16, outputs=16, kernel=3, groups=1),
    )
  )
  options = {"activation": scaled_gelu, "input_scale": jnp.float32(0.9)}
  expected = scaled_ws_convolution(*arrays, **options).result
  actual = scaled_ws_convolution(arrays[0].astype(jnp.bfloat16), *arrays[1:], **options).result
  assert actual.dtype == jnp.bfloat16
  error = np.linalg.norm(actual.astype(jnp.float32) - expected) / np.linalg.norm(expected)
  # Roundings of x, weights, products' sum, bias and result: 2^-9 * sqrt(5) or so.
  assert error < 8e-3


@pytest.mark.parametrize(
  ("channels", "outputs", "groups", "message"),
  [(6, 8, 4, "input channels"), (8, 6, 4, "multiple of groups=4")],
)
def test_channels_that_do_not_fit_are_an_error(channels, outputs, groups, message):
  weight = jnp.zeros((3, 3, 2 if outputs == 6 else 6, outputs))
  x, vector = jnp.zeros((4, 4, 1, channels)), jnp.zeros(outputs)
  with pytest.raises(ValueError, match=message):
    scaled_ws_convolution(x, weight, vector, vector, groups=groups)


def test_the_input_scale_is_a_constant():
  rng = np.random.default_rng(8)
  arrays = operands(rng, height=2, width=2, channels=4, outputs=4, kernel=1, groups=1)
  arrays = tuple(map(jnp.asarray, arrays))

  def total(scale):
    return jnp.sum(scaled_ws_convolution(*arrays, input_scale=scale).result)

  assert total(jnp.float32(0.5)) != total(jnp.float32(0.7))
  assert jax.grad(total)(jnp.float32(0.5)) == 0


def test_the_input_comes_where_it_is_asked_for():
  rng = np.random.default_rng(9)
  arrays = operands(rng, height=3, width=2, channels=4, outputs=4, kernel=1, groups=1)
  arrays = tuple(map(jnp.asarray, arrays))
  plain = scaled_ws_convolution(*arrays)
  assert plain.input is None
  full = scaled_ws_convolution(*arrays, returns_input=True)
  np.testing.assert_array_equal(full.result, plain.result)
  np.testing.assert_array_equal(full.input, arrays[0])
