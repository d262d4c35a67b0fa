import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import kernels
from kernels.se_residual import reference
from tests.kernels import exact

H, W, N, C, S = 3, 2, 4, 6, 5


def operands(seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((H, W, N, C), (H, W, N, C), (C, S), (S,), (S, C), (C,), ())
  return tuple(np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes)


def se_residual(*operands, keep=None, alpha=0.2):
  return reference.se_residual(*operands, keep, alpha=alpha)


def gate(branch, *parameters):
  mean = jnp.mean(branch, axis=(0, 1), dtype=jnp.float32)
  return reference.gate(mean, *parameters, branch.dtype)


def gate_float64(branch, w0, b0, w1, b1):
  mean = branch.astype(np.float64).mean(axis=(0, 1))
  hidden = np.maximum(mean @ w0 + b0, 0)
  return 2 / (1 + np.exp(-(hidden @ w1 + b1)))


@pytest.mark.parametrize("keep", [None, [1, 0, 1, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_against_float64(keep, alpha):
  branch, shortcut, *gate_parameters, skip_gain = operands()
  actual = se_residual(
    *map(jnp.asarray, (branch, shortcut, *gate_parameters, skip_gain)),
    keep=None if keep is None else jnp.asarray(keep, jnp.float32),
    alpha=alpha,
  )
  scale = alpha * skip_gain * gate_float64(branch, *gate_parameters)
  scale = scale * np.ones(N)[:, None] if keep is None else scale * np.array(keep)[:, None]
  np.testing.assert_allclose(actual, shortcut + scale[None, None] * branch, rtol=0, atol=2e-6)


def test_a_dropped_example_is_its_shortcut_exactly():
  arrays = tuple(map(jnp.asarray, operands()))
  result = se_residual(*arrays, keep=jnp.asarray([1, 0, 1, 0], jnp.float32))
  np.testing.assert_array_equal(result[:, :, 1::2], arrays[1][:, :, 1::2])
  assert not np.allclose(result[:, :, 0::2], arrays[1][:, :, 0::2])


def test_a_kept_example_is_not_rescaled():
  arrays = tuple(map(jnp.asarray, operands()))
  kept = se_residual(*arrays, keep=jnp.asarray([1, 0, 1, 0], jnp.float32))
  np.testing.assert_array_equal(kept[:, :, 0::2], se_residual(*arrays)[:, :, 0::2])


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0, 3, width=32))
@settings(deadline=None, max_examples=25)
def test_the_gate_lies_between_0_and_2(seed, size):
  branch, _, *parameters, _ = operands(seed)
  value = np.asarray(gate(jnp.asarray(branch * size), *map(jnp.asarray, parameters)))
  assert value.shape == (N, C)
  assert value.dtype == np.float32
  assert (value >= 0).all()
  assert (value <= 2).all()
  # Float32 rounds a sigmoid to 0 or 1 once its argument is large; short of that it may not.
  exact = gate_float64(branch * size, *parameters)
  inside = value[(exact > 1e-5) & (exact < 2 - 1e-5)]
  assert inside.size
  assert (inside > 0).all()
  assert (inside < 2).all()


def test_zero_parameters_give_a_gate_of_1():
  branch, _, *parameters, _ = operands()
  zeros = [jnp.zeros(array.shape) for array in parameters]
  np.testing.assert_array_equal(gate(jnp.asarray(branch), *zeros), np.ones((N, C)))


@pytest.mark.parametrize("keep", [None, [1, 0, 1, 1]])
def test_gradients_agree_with_finite_differences(keep):
  keep = None if keep is None else jnp.asarray(keep, jnp.float32)
  # Differences over 1e-2 in float32: the kinks of ReLU lie further away with this seed.
  check_grads(
    # `check_grads` perturbs with NumPy arrays.
    lambda *arrays: se_residual(*map(jnp.asarray, arrays), keep=keep),
    tuple(map(jnp.asarray, operands(seed=1))),
    order=1,
    modes=["rev"],
    eps=1e-2,
    atol=1e-2,
    rtol=1e-2,
  )


def test_bfloat16_stays_bfloat16():
  branch, shortcut, *rest = map(jnp.asarray, operands())
  expected = se_residual(branch, shortcut, *rest)
  actual = se_residual(branch.astype(jnp.bfloat16), shortcut.astype(jnp.bfloat16), *rest)
  assert actual.dtype == jnp.bfloat16
  # Two roundings of 2^-9 to values of up to 4, and the gate's operands.
  np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=0, atol=4e-2)


def test_the_gate_of_bfloat16_is_float32():
  branch, _, *parameters, _ = map(jnp.asarray, operands())
  shape = jax.eval_shape(gate, branch.astype(jnp.bfloat16), *parameters)
  assert shape.dtype == jnp.float32


def test_the_op_is_a_convolution_with_se_residual_behind_it():
  branch, shortcut, *gate_parameters, skip_gain = operands()
  rng = np.random.default_rng(7)
  x = rng.standard_normal((H, W, N, 8)).astype(np.float32)
  weight = rng.standard_normal((1, 1, 8, C)).astype(np.float32)
  gain, bias = rng.standard_normal((2, C)).astype(np.float32)
  actual = kernels.conv_se_residual(
    *map(jnp.asarray, (x, weight, gain, bias, shortcut, *gate_parameters, skip_gain)),
    activation=exact.gelu,
    input_scale=jnp.float32(0.7),
    keep=jnp.asarray([1, 0, 1, 1], jnp.float32),
    alpha=0.5,
  )
  with jax.enable_x64(True):
    arrays = (np.float64(one) for one in (x, weight, gain, bias))
    branch = np.asarray(exact.convolve(*arrays, 0.7, activation=exact.gelu))
  scale = 0.5 * skip_gain * gate_float64(branch, *gate_parameters) * np.array([[1], [0], [1], [1]])
  np.testing.assert_allclose(actual, shortcut + scale[None, None] * branch, rtol=0, atol=5e-6)


def test_the_op_has_no_derivative_by_the_inputs_scale():
  _, shortcut, *gate_parameters, skip_gain = operands()
  x = np.random.default_rng(8).standard_normal((H, W, N, 8)).astype(np.float32)
  weight = np.eye(8, C, dtype=np.float32)[None, None]

  def total(scale):
    return kernels.conv_se_residual(
      *map(jnp.asarray, (x, weight, np.ones(C, np.float32), np.zeros(C, np.float32), shortcut)),
      *map(jnp.asarray, (*gate_parameters, skip_gain)),
      input_scale=scale,
    ).sum()

  assert total(jnp.float32(0.5)) != total(jnp.float32(0.7))
  assert jax.grad(total)(jnp.float32(0.5)) == 0
