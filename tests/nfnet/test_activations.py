import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from kernels.scaled_ws_conv.pallas import check_activation
from nfnet.activations import ACTIVATIONS, scaled_activation


def gaussian_variance(function):
  """Returns Var[f(x)] for x from N(0, 1) by the trapezoidal rule, which is exact to 1e-6 here."""
  x = np.linspace(-9, 9, 20001)
  density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
  y = np.asarray(function(jnp.asarray(x, jnp.float32)), np.float64)
  mean = np.trapezoid(y * density, x)
  return np.trapezoid((y - mean) ** 2 * density, x)


# log_softmax is not an elementwise function.
@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"log_softmax"}))
def test_the_gain_gives_unit_variance(name):
  # The released gains were estimated by sampling; they are within 2e-3.
  assert gaussian_variance(scaled_activation(name, "released")) == pytest.approx(1, abs=3e-3)


def test_log_softmax_of_many_channels_keeps_unit_variance():
  x = np.random.default_rng(0).standard_normal((1000, 256)).astype(np.float32)
  assert np.var(scaled_activation("log_softmax", "released")(jnp.asarray(x))) == pytest.approx(
    1, abs=1e-2
  )


def test_gelu_is_the_tanh_form():
  x = np.linspace(-3, 3, 101, dtype=np.float32)
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)
  expected = 1.7015043497085571 * 0.5 * x * (1 + np.tanh(inner))
  np.testing.assert_allclose(
    scaled_activation("gelu", "released")(jnp.asarray(x)), expected, atol=1e-6
  )
  difference = scaled_activation("gelu_erf", "released")(jnp.asarray(x)) - expected
  assert 1e-4 < np.abs(difference).max() < 1e-2


def test_gelu_has_the_slope_of_its_formula():
  x = jnp.linspace(-6, 6, 121)
  gelu = scaled_activation("gelu", "released")
  expected = jax.vmap(jax.grad(lambda x: 1.7015043497085571 * jax.nn.gelu(x, approximate=True)))(x)
  # The rounding of 1 + tanh, 2^-24, times x (sqrt(2 / pi) + 0.1 x^2), at most 28, on each side, and
  # as much again where XLA does not fuse multiplications with additions.
  np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), expected, atol=8e-6)


def test_the_same_object_each_time():
  assert scaled_activation("silu", "released") is scaled_activation("silu", "released")


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
  with pytest.raises(ValueError, match=r"unknown activation 'geluu'; choose one of .*gelu_erf"):
    scaled_activation("geluu", "released")


def test_gelu_erf_is_exact_and_so_is_its_slope():
  x = np.linspace(-6, 6, 121)
  share = np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in x])
  density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
  gelu = scaled_activation("gelu_erf", "released")
  argument = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(gelu(argument), 1.7015043497085571 * x * share, atol=2e-6)
  slope = 1.7015043497085571 * (share + x * density)
  np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(argument), slope, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_timms_gelu_is_exact_and_its_other_activations_are_the_released_ones(name):
  expected = "gelu_erf" if name == "gelu" else name
  assert scaled_activation(name, "timm") is scaled_activation(expected, "released")


NOT_IN_KERNELS = ("celu", "elu", "log_softmax", "selu")


@pytest.mark.parametrize("name", NOT_IN_KERNELS)
def test_tpu_kernels_refuse_what_they_cannot_apply(name):
  """It then runs by the reference."""
  with pytest.raises(NotImplementedError, match=r"an activation (with expm1|that is not element)"):
    check_activation(scaled_activation(name, "released").function)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - set(NOT_IN_KERNELS)))
def test_tpu_kernels_can_apply_every_other_activation_and_its_slope(name):
  """Lowers a kernel for TPU, where an operation that Pallas does not have there is an error."""
  check_activation(scaled_activation(name, "released").function)

  def body(x_ref, value_ref, slope_ref):
    value, pull_back = jax.vjp(scaled_activation(name, "released").function, x_ref[...])
    value_ref[...], (slope_ref[...],) = value, pull_back(jnp.ones_like(value))

  tile = jax.ShapeDtypeStruct((8, 128), jnp.float32)
  kernel = pl.pallas_call(body, out_shape=(tile, tile))
  text = jax.jit(kernel).trace(tile).lower(lowering_platforms=("tpu",)).as_text()
  assert "tpu_custom_call" in text
