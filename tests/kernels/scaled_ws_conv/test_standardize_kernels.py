"""The kernels that standardize filters before a convolution, in the TPU interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from kernels.scaled_ws_conv import pallas, reference, standardize_rows_tpu, standardize_tpu
from kernels.scaled_ws_conv.filters import StandardizedFilters

pytestmark = pytest.mark.usefixtures("interpreted")
IN_ROWS = [(3, 3, 128, 48), (1, 1, 384, 32), (1, 1, 128, 192)]
IN_COLUMNS = [(3, 3, 128, 128), (1, 1, 384, 256)]
SCALE = jnp.float32(0.7)


@pytest.mark.parametrize("shape", [*IN_ROWS, *IN_COLUMNS])
def test_one_kernel_covers_a_shape(shape):
  raw = (shape[0] * shape[1], *shape[2:])
  assert standardize_rows_tpu.can_standardize(raw) == (shape in IN_ROWS)
  assert standardize_tpu.can_standardize(raw) == (shape in IN_COLUMNS)


# Outputs or inputs that do not fill tiles.
@pytest.mark.parametrize("shape", [(1, 128, 24), (1, 96, 32), (9, 96, 128)])
def test_no_kernel_covers_a_shape(shape):
  assert not standardize_rows_tpu.can_standardize(shape)
  assert not standardize_tpu.can_standardize(shape)


@pytest.mark.parametrize("standardization", ["released", "timm"])
@pytest.mark.parametrize("shape", [*IN_ROWS, IN_COLUMNS[1]])
def test_values_and_derivatives(shape, standardization):
  generator = np.random.default_rng(0)
  # The mean is far from 0, one filter is constant, and the scale of another one is bounded.
  weight = generator.standard_normal(shape) * 0.05 + 0.3
  weight[..., 5] = 0.25
  weight[..., 6] = 1e-4 * generator.standard_normal(shape[:-1])
  gain = generator.standard_normal(shape[-1])
  operands = jnp.asarray(weight, jnp.float32), jnp.asarray(gain, jnp.float32)

  def of(package):
    def standardized(weight, gain):
      return package.standardize_filters(
        weight,
        gain,
        SCALE,
        dtype=jnp.dtype("bfloat16"),
        gradient_dtype=jnp.dtype("float32"),
        standardization=standardization,
      )

    filters, pull_back = jax.vjp(standardized, *operands)
    cotangent = jnp.asarray(
      np.random.default_rng(1).standard_normal(filters.rows.shape), jnp.float32
    )
    return filters.rows, *pull_back(StandardizedFilters(jnp.zeros_like(filters.rows), cotangent))

  for ours, expected, tolerance in zip(of(pallas), of(reference), (2**-8, 1e-5, 1e-5), strict=True):
    assert ours.dtype == expected.dtype
    expected = np.asarray(expected, np.float64)
    # Gradients of these two filters are larger than others by orders of magnitude.
    largest = np.abs(expected).max(tuple(range(expected.ndim - 1)), keepdims=expected.ndim > 1)
    error = np.abs(np.asarray(ours, np.float64) - expected)
    assert (error <= tolerance * np.maximum(largest, 1)).all()


@pytest.mark.parametrize("implementation", ["pallas", "reference"])
# The rows of the last one are made by XLA.
@pytest.mark.parametrize(
  "shape",
  [
    (1, 1, 384, 32),
    (1, 1, 128, 128),
    pytest.param((3, 3, 128, 128), marks=pytest.mark.slow),
    (3, 3, 96, 128),
  ],
)
def test_filters_without_a_gradient(shape, implementation):
  generator = np.random.default_rng(0)
  weight = jnp.asarray(generator.standard_normal(shape), jnp.float32)
  gain, bias = (jnp.asarray(generator.standard_normal(shape[-1]), jnp.float32) for _ in range(2))
  x = jnp.asarray(generator.standard_normal((2, 1, 8, shape[2])), jnp.bfloat16)

  def convolved(x, weight, gradient_dtype):
    filters = kernels.standardize_filters(
      weight, gain, gradient_dtype=gradient_dtype, implementation=implementation
    )
    assert (filters.gradient_sink is None) == (gradient_dtype is None)
    y, _ = kernels.standardized_convolution(x, filters, bias, implementation=implementation)
    return jnp.sum(y.astype(jnp.float32) ** 2)

  value_and_gradient = jax.value_and_grad(convolved)
  expected = value_and_gradient(x, weight, jnp.float32)
  for ours, theirs in zip(value_and_gradient(x, weight, None), expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  with pytest.raises(ValueError, match="gradient_dtype=None, so they have no gradient"):
    jax.grad(convolved, argnums=1)(x, weight, None)
