"""The stem's kernels as the TPU interpreter runs them.

`test_scaled_ws_conv_kernel` explains where the tolerances come from.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.stem import pallas, reference
from tests.kernels import exact

pytestmark = pytest.mark.usefixtures("interpreted")
SCALE = jnp.float32(0.8)
STATIC = dict(activation=exact.gelu, standardization="released")
kernel = functools.partial(pallas.stem_convolutions, **STATIC)
by_xla = functools.partial(reference.stem_convolutions, **STATIC)
# Of the relative error: the roundings of four convolutions one after the other, forward and back.
ROUNDINGS = 16
EPSILON = {"float32": 2.0**-24 * np.sqrt(9 * 64), "bfloat16": 2.0**-9}


def problem(height, width, count, channels, dtype):
  generator = np.random.default_rng(0)

  def draw(*shape, dtype="float32"):
    return jnp.asarray(generator.standard_normal(shape), dtype)

  pairs = itertools.pairwise((3, *channels))
  weights = tuple(draw(3, 3, *pair) for pair in pairs)
  gains, biases = (tuple(map(draw, channels)) for _ in range(2))
  images = draw(height, width, count, 3, dtype=dtype)
  cotangent = draw(height // 4, width // 4, count, channels[-1], dtype=dtype)
  return (images, weights, gains, biases), cotangent


@pytest.mark.parametrize(
  ("height", "width", "count", "last_channels", "dtype"),
  [
    (4, 16, 1, 192, "float32"),
    pytest.param(4, 32, 16, 128, "bfloat16", marks=pytest.mark.slow),
    pytest.param(16, 32, 17, 128, "float32", marks=pytest.mark.slow),
  ],
)
def test_against_float64(height, width, count, last_channels, dtype):
  operands, cotangent = problem(height, width, count, (16, 32, 64, last_channels), dtype)
  expected = exact.in_float64(
    lambda *operands: exact.stem_convolutions(*operands, 0.8, activation=exact.gelu),
    operands,
    cotangent,
  )
  actual = exact.compiled_once(lambda *operands: kernel(*operands, SCALE), operands, cotangent)
  errors = exact.relative_errors(actual, expected)
  assert max(errors) < ROUNDINGS * EPSILON[dtype]
  of_reference = exact.compiled_once(
    lambda *operands: by_xla(*operands, SCALE), operands, cotangent
  )
  # Rounded as often; float32 sums of sums lose less than sums in a row.
  factor = {"float32": 4, "bfloat16": 1.25}[dtype]
  for ours, theirs in zip(errors, exact.relative_errors(of_reference, expected), strict=True):
    assert ours < factor * theirs


def test_values_in_bfloat16():
  """There are two packs of pixels beside each other. `make test-all` tests derivatives, too."""
  operands, _ = problem(4, 32, 1, (16, 32, 64, 128), "bfloat16")
  actual, of_reference = (exact.run_once(op, (*operands, SCALE)) for op in (kernel, by_xla))
  assert actual.dtype == jnp.bfloat16
  wide = jax.tree.map(lambda one: np.asarray(one).astype(np.float64), operands)
  with jax.enable_x64(True):
    expected = exact.run_once(
      functools.partial(exact.stem_convolutions, scale=0.8, activation=exact.gelu), wide
    )
  ours, theirs = exact.relative_errors([actual, of_reference], [np.asarray(expected)] * 2)
  assert ours < ROUNDINGS * EPSILON["bfloat16"]
  assert ours < 1.25 * theirs


def test_timms_numerics():
  """The filters are standardized outside of the kernels, so values tell as much as gradients."""
  (images, weights, *others), _ = problem(4, 16, 1, (16, 32, 64, 128), "float32")
  # Filters of about the variance that timm adds, so that it counts for half.
  operands = images, tuple(0.003 * weight for weight in weights), *others
  expected = exact.run_once(
    functools.partial(exact.stem_convolutions, scale=0.8, activation=exact.gelu_erf, epsilon=1e-5),
    operands,
  )
  theirs = dict(activation=exact.gelu_erf, standardization="timm")
  for op in (pallas.stem_convolutions, reference.stem_convolutions):
    actual = exact.run_once(functools.partial(op, **theirs), (*operands, SCALE))
    (error,) = exact.relative_errors([actual], [np.asarray(expected, np.float64)])
    # Both are computed in float32.
    assert error < 2 * ROUNDINGS * EPSILON["float32"]


def test_images_have_a_gradient_only_where_it_is_asked_for():
  """Training does not need it, and it would take as long as the weights' gradients."""
  operands, _ = problem(8, 16, 1, (16, 32, 64, 128), "float32")

  def total(images, *parameters):
    return jnp.sum(kernel(images, *parameters, SCALE))

  def results_of_first_convolution(*arguments, argnums):
    jaxpr = jax.make_jaxpr(jax.grad(total, argnums))(*arguments)
    # The last to run: pallas_call is inside of the function that is traced once.
    *_, last = (one for one in jaxpr.eqns if one.params.get("name") == "gradients")
    return len(last.outvars)

  # Of weights and biases, and one of the images.
  assert results_of_first_convolution(*operands, argnums=(1, 2, 3)) == 2
  assert results_of_first_convolution(*operands, argnums=(0, 1, 2, 3)) == 3


@pytest.mark.parametrize(
  ("height", "width", "channels", "dtype", "reason"),
  [
    (10, 16, (16, 32, 64, 128), "float32", "sides"),
    (8, 24, (16, 32, 64, 128), "float32", "sides"),
    (8, 16, (24, 32, 64, 128), "float32", "fill the lanes"),
    (8, 16, (4, 32, 64, 128), "float32", "too many channels"),
    (8, 16, (16, 32, 64, 128), "float16", "images other"),
  ],
)
def test_says_what_it_does_not_cover(height, width, channels, dtype, reason):
  operands, _ = problem(height, width, 1, channels, dtype)
  with pytest.raises(NotImplementedError, match=reason):
    kernel(*operands, SCALE)


def test_an_activation_of_all_channels_is_not_covered():
  operands, _ = problem(8, 16, 1, (16, 32, 64, 128), "float32")
  with pytest.raises(NotImplementedError, match="not elementwise"):
    kernel(*operands, SCALE, activation=jax.nn.log_softmax)
