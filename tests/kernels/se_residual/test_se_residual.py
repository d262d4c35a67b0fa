import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import kernels
from kernels.fully_connected.formulas import rounded_product
from kernels.se_residual import reference
from kernels.se_residual.formulas import Gate, gate_values
from tests.kernels import exact

H, W, N, C, S = 3, 2, 4, 6, 5


def operands(seed=0):
  """Returns branch, shortcut, gate and skip gain."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return np.asarray(rng.standard_normal(shape), np.float32)

  wide = draw(H, W, N, C), draw(H, W, N, C)
  return *wide, Gate(draw(C, S), draw(S), draw(S, C), draw(C)), draw()


def as_jax(arrays):
  return jax.tree.map(jnp.asarray, arrays)


def se_residual(*operands, keep=None, alpha=0.2):
  return reference.se_residual(*operands, keep, alpha=alpha)


def gate_of_branch(branch, gate):
  mean = jnp.mean(branch, axis=(0, 1), dtype=jnp.float32)
  return gate_values(mean, gate, dtype=branch.dtype, product=rounded_product)


def gate_float64(branch, gate):
  mean = branch.astype(np.float64).mean(axis=(0, 1))
  hidden = np.maximum(mean @ gate.squeeze_weight + gate.squeeze_bias, 0)
  return 2 / (1 + np.exp(-(hidden @ gate.excite_weight + gate.excite_bias)))


@pytest.mark.parametrize("keep", [None, [1, 0, 1, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_against_float64(keep, alpha):
  branch, shortcut, gate, skip_gain = operands()
  actual = se_residual(
    *as_jax((branch, shortcut, gate, skip_gain)),
    keep=None if keep is None else jnp.asarray(keep, jnp.float32),
    alpha=alpha,
  )
  scale = alpha * skip_gain * gate_float64(branch, gate)
  scale = scale * np.ones(N)[:, None] if keep is None else scale * np.array(keep)[:, None]
  np.testing.assert_allclose(actual, shortcut + scale[None, None] * branch, rtol=0, atol=2e-6)


def test_a_dropped_example_is_its_shortcut_exactly():
  arrays = as_jax(operands())
  result = se_residual(*arrays, keep=jnp.asarray([1, 0, 1, 0], jnp.float32))
  np.testing.assert_array_equal(result[:, :, 1::2], arrays[1][:, :, 1::2])
  assert not np.allclose(result[:, :, 0::2], arrays[1][:, :, 0::2])


def test_a_kept_example_is_not_rescaled():
  arrays = as_jax(operands())
  kept = se_residual(*arrays, keep=jnp.asarray([1, 0, 1, 0], jnp.float32))
  np.testing.assert_array_equal(kept[:, :, 0::2], se_residual(*arrays)[:, :, 0::2])


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0, 3, width=32))
@settings(deadline=None, max_examples=25)
def test_the_gate_lies_between_0_and_2(seed, size):
  branch, _, gate, _ = operands(seed)
  value = np.asarray(gate_of_branch(jnp.asarray(branch * size), as_jax(gate)))
  assert value.shape == (N, C)
  assert value.dtype == np.float32
  assert (value >= 0).all()
  assert (value <= 2).all()
  # Float32 rounds a sigmoid to 0 or 1 once its argument is large; short of that it may not.
  exact = gate_float64(branch * size, gate)
  inside = value[(exact > 1e-5) & (exact < 2 - 1e-5)]
  assert inside.size
  assert (inside > 0).all()
  assert (inside < 2).all()


def test_zero_parameters_give_a_gate_of_1():
  branch, _, gate, _ = operands()
  zeros = jax.tree.map(lambda array: jnp.zeros(array.shape), gate)
  np.testing.assert_array_equal(gate_of_branch(jnp.asarray(branch), zeros), np.ones((N, C)))


@pytest.mark.parametrize("keep", [None, [1, 0, 1, 1]])
def test_gradients_agree_with_finite_differences(keep):
  keep = None if keep is None else jnp.asarray(keep, jnp.float32)
  # Differences over 1e-2 in float32: the kinks of ReLU lie further away with this seed.
  check_grads(
    # `check_grads` perturbs with NumPy arrays.
    lambda *arrays: se_residual(*as_jax(arrays), keep=keep),
    as_jax(operands(seed=1)),
    order=1,
    modes=["rev"],
    eps=1e-2,
    atol=1e-2,
    rtol=1e-2,
  )


def test_bfloat16_stays_bfloat16():
  branch, shortcut, *rest = as_jax(operands())
  expected = se_residual(branch, shortcut, *rest)
  actual = se_residual(branch.astype(jnp.bfloat16), shortcut.astype(jnp.bfloat16), *rest)
  assert actual.dtype == jnp.bfloat16
  # Two roundings of 2^-9 to values of up to 4, and the gate's operands.
  np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=0, atol=4e-2)


def test_the_gate_of_bfloat16_is_float32():
  branch, _, gate, _ = as_jax(operands())
  shape = jax.eval_shape(gate_of_branch, branch.astype(jnp.bfloat16), gate)
  assert shape.dtype == jnp.float32


def test_the_op_is_a_convolution_with_se_residual_behind_it():
  _, shortcut, gate, skip_gain = operands()
  rng = np.random.default_rng(7)
  x = rng.standard_normal((H, W, N, 8)).astype(np.float32)
  weight = rng.standard_normal((1, 1, 8, C)).astype(np.float32)
  gain, bias = rng.standard_normal((2, C)).astype(np.float32)
  actual = kernels.conv_se_residual(
    *as_jax((x, weight, gain, bias, shortcut, gate, skip_gain)),
    activation=exact.gelu,
    input_scale=jnp.float32(0.7),
    keep=jnp.asarray([1, 0, 1, 1], jnp.float32),
    alpha=0.5,
  )
  with jax.enable_x64(True):
    arrays = (np.float64(one) for one in (x, weight, gain, bias))
    branch = np.asarray(exact.convolve(*arrays, 0.7, activation=exact.gelu))
  scale = 0.5 * skip_gain * gate_float64(branch, gate) * np.array([[1], [0], [1], [1]])
  np.testing.assert_allclose(actual, shortcut + scale[None, None] * branch, rtol=0, atol=5e-6)


def test_the_op_has_no_derivative_by_the_inputs_scale():
  _, shortcut, gate, skip_gain = operands()
  x = np.random.default_rng(8).standard_normal((H, W, N, 8)).astype(np.float32)
  weight = np.eye(8, C, dtype=np.float32)[None, None]

  def total(scale):
    return kernels.conv_se_residual(
      *as_jax((x, weight, np.ones(C, np.float32), np.zeros(C, np.float32), shortcut)),
      *as_jax((gate, skip_gain)),
      input_scale=scale,
    ).sum()

  assert total(jnp.float32(0.5)) != total(jnp.float32(0.7))
  assert jax.grad(total)(jnp.float32(0.5)) == 0
