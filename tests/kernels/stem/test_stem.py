import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from kernels import stem_convolutions
from tests.kernels import exact


def test_the_stem_is_four_convolutions_in_a_row():
  rng = np.random.default_rng(10)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  pairs = list(itertools.pairwise((3, 4, 6, 8, 16)))
  images = draw(12, 8, 2, 3)
  weights = tuple(draw(3, 3, *pair) for pair in pairs)
  gains, biases = (tuple(draw(outputs) for _, outputs in pairs) for _ in range(2))
  operands = images, weights, gains, biases
  actual = exact.run_once(
    functools.partial(stem_convolutions, activation=exact.gelu), (*operands, jnp.float32(0.7))
  )
  with jax.enable_x64(True):
    expected = np.asarray(
      exact.run_once(
        functools.partial(exact.stem_convolutions, scale=0.7, activation=exact.gelu),
        jax.tree.map(np.float64, operands),
      )
    )
  assert actual.shape == (3, 2, 2, 16)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
