import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import sgd_agc_step
from kernels.sgd_agc.formulas import PARAMETER_NORM_FLOOR
from kernels.sgd_agc.reference import clip_gradient, unit_norm

# HWIO, IO, vector, scalar, with the axes of a unit.
SHAPES = {(3, 3, 4, 5): (0, 1, 2), (4, 5): (0,), (7,): (0,), (): ()}
CLIPPING = np.float32(0.01)


def norm_float64(x, axes):
  return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes, keepdims=True))


def clip_float64(gradient, parameter, axes, clipping):
  largest = clipping * np.maximum(norm_float64(parameter, axes), 1e-3)
  norm = norm_float64(gradient, axes)
  return np.where(norm > largest, gradient * largest / np.maximum(norm, 1e-6), gradient)


def draw(shape, seed, scale=1.0):
  return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clipping", [None, CLIPPING])
@pytest.mark.parametrize("gradient_scale", [1e-4, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 2e-5])
def test_two_steps_against_float64(shape, clipping, gradient_scale, weight_decay):
  axes = SHAPES[shape]
  learning_rate, momentum, ema_decay = 0.1, 0.9, 0.75
  parameter, ema = draw(shape, 0), draw(shape, 5)
  buffer = np.zeros(shape, np.float32)
  expected_parameter, expected_buffer = parameter.astype(np.float64), buffer.astype(np.float64)
  expected_ema = ema.astype(np.float64)
  for step in range(2):
    gradient = draw(shape, 1 + step, gradient_scale)
    step = sgd_agc_step(
      {"x": jnp.asarray(parameter)},
      {"x": jnp.asarray(gradient)},
      {"x": jnp.asarray(buffer)},
      {"x": jnp.asarray(ema)},
      ema_decay=jnp.float32(ema_decay),
      learning_rate=jnp.float32(learning_rate),
      momentum=jnp.float32(momentum),
      weight_decay=jnp.float32(weight_decay),
      clipping=None if clipping is None else jnp.asarray(clipping),
    )
    parameter, buffer = step.parameters["x"], step.momentum_buffers["x"]
    ema = step.emas["x"]
    square_sum = step.gradient_square_sum
    g = gradient.astype(np.float64)
    np.testing.assert_allclose(square_sum, np.sum(np.square(g)), rtol=1e-6)
    if clipping is not None:
      g = clip_float64(g, expected_parameter, axes, clipping)
    g = g + weight_decay * expected_parameter
    expected_buffer = momentum * expected_buffer + g
    expected_parameter = expected_parameter - learning_rate * (g + momentum * expected_buffer)
    # The two gradients may nearly cancel.
    np.testing.assert_allclose(
      buffer, expected_buffer, rtol=2e-6, atol=3e-7 * np.abs(expected_buffer).max()
    )
    np.testing.assert_allclose(parameter, expected_parameter, rtol=1e-6, atol=1e-7)
    expected_ema = ema_decay * expected_ema + (1 - ema_decay) * expected_parameter
    np.testing.assert_allclose(ema, expected_ema, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_unit_is_what_feeds_one_output(shape):
  x = draw(shape, 3)
  np.testing.assert_allclose(unit_norm(jnp.asarray(x)), norm_float64(x, SHAPES[shape]), rtol=1e-6)


clip = functools.partial(clip_gradient, clipping=jnp.asarray(CLIPPING))


@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-6, 3))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_after_is_at_most_the_threshold(shape, seed, log_scale):
  parameter, gradient = draw(shape, seed), draw(shape, seed + 1, 10**log_scale)
  clipped = np.asarray(clip(jnp.asarray(gradient), jnp.asarray(parameter)))
  axes = SHAPES[shape]
  threshold = CLIPPING * np.maximum(norm_float64(parameter, axes), PARAMETER_NORM_FLOOR)
  before, after = norm_float64(gradient, axes), norm_float64(clipped, axes)
  # Float32 rounding of two norms and a product.
  np.testing.assert_allclose(after, np.minimum(before, threshold), rtol=1e-5)
  # Directions stay, and small units are untouched.
  untouched = np.broadcast_to(before < threshold * 0.999, gradient.shape)
  np.testing.assert_array_equal(clipped[untouched], gradient[untouched])


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("shape", SHAPES)
def test_clipping_twice_is_clipping_once(shape, seed):
  parameter, gradient = jnp.asarray(draw(shape, seed)), jnp.asarray(draw(shape, seed + 1))
  once = clip(gradient, parameter)
  # The norm of a clipped unit is the threshold up to rounding.
  np.testing.assert_allclose(clip(once, parameter), once, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_parameter_of_zeros_can_move_and_a_gradient_of_zeros_is_finite(shape):
  zeros = jnp.zeros(shape)
  clipped = clip(jnp.asarray(draw(shape, 4)), zeros)
  np.testing.assert_allclose(unit_norm(clipped), 0.01 * 1e-3, rtol=1e-5)
  np.testing.assert_array_equal(clip(zeros, zeros), zeros)


def test_units_are_clipped_one_by_one():
  parameter = jnp.ones((2, 3))
  gradient = jnp.asarray([[1e-3, 1.0, 1e-3], [1e-3, 1.0, 1e-3]])
  clipped = clip(gradient, parameter)
  np.testing.assert_array_equal(clipped[:, 0::2], gradient[:, 0::2])
  np.testing.assert_allclose(unit_norm(clipped)[0, 1], 0.01 * np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 4, 5)])
def test_other_ranks_are_an_error(shape):
  with pytest.raises(ValueError, match="dimensions"):
    unit_norm(jnp.zeros(shape))


def test_hyper_parameters_are_operands():
  """A schedule must not compile the step anew."""
  compilations = []

  @jax.jit
  def step(learning_rate, clipping):
    compilations.append(1)
    ones = {"x": jnp.ones(3)}
    return sgd_agc_step(
      ones,
      ones,
      ones,
      learning_rate=learning_rate,
      momentum=jnp.float32(0.9),
      weight_decay=jnp.float32(0),
      clipping=clipping,
    )

  for i in range(3):
    step(jnp.float32(i), jnp.float32(0.01 * i))
  assert len(compilations) == 1
