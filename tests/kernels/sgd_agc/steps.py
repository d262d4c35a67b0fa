"""Steps of SGD with AGC on random parameters, by the kernels and by the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.sgd_agc import pallas, reference

CLIPPING = jnp.float32(0.01)
HYPER_PARAMETERS = dict(
  learning_rate=jnp.float32(0.1),
  momentum=jnp.float32(0.9),
  weight_decay=jnp.float32(2e-5),
  clipping=CLIPPING,
  ema_decay=None,
)


def draw(shapes, gradient_scale=1.0, *, has_ema=False):
  """Returns parameters, gradients, momentum buffers, and moving averages or None, by name."""
  generator = np.random.default_rng(0)
  scales = (1.0, gradient_scale, 1.0, *([1.0] if has_ema else []))
  trees = [
    {
      name: jnp.asarray(scale * generator.standard_normal(shape), jnp.float32)
      for name, shape in shapes.items()
    }
    for scale in scales
  ]
  return trees if has_ema else [*trees, None]


def by_reference(arrays, *, stacked=False, **hyper_parameters):
  """Returns the step of the reference, with HYPER_PARAMETERS where no others are given."""
  hyper_parameters = {**HYPER_PARAMETERS, **hyper_parameters}
  # One program: operation by operation, each would be compiled for each shape.
  step = jax.jit(functools.partial(reference.sgd_agc_step, stacked=stacked))
  return step(*arrays, **hyper_parameters)


def by_kernel(arrays, *, stacked=False, **hyper_parameters):
  """Returns the step of the kernels, with HYPER_PARAMETERS where no others are given."""
  hyper_parameters = {**HYPER_PARAMETERS, **hyper_parameters}
  return pallas.sgd_agc_step(*arrays, **hyper_parameters, stacked=stacked)


def assert_close(actual, expected, arrays, *, stacked=False):
  """Asserts that two steps of the same arrays agree up to the order of float32 sums."""
  parameters, _, buffers, emas = arrays
  olds = (parameters, buffers, emas)
  for kind, ours, theirs, old in zip(
    expected._fields, actual[:3], expected[:3], olds, strict=False
  ):
    if theirs is None:
      assert ours is None
      continue
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
      assert ours[name].dtype == jnp.float32
      # Relative 2^-24 x sqrt(values of a unit), twice for a quotient.
      shape = values.shape[1:] if stacked else values.shape
      unit = np.prod(shape if len(shape) < 2 else shape[:-1])
      tolerance = 2 * 2**-24 * np.sqrt(max(unit, 4))
      # A new value may be a difference of large ones.
      largest = max(np.abs(np.asarray(x)).max() for x in (values, old[name]))
      np.testing.assert_allclose(
        ours[name], values, rtol=0, atol=tolerance * largest, err_msg=f"{kind} {name}"
      )
  elements = sum(x.size for x in parameters.values())
  np.testing.assert_allclose(
    actual.gradient_square_sum, expected.gradient_square_sum, rtol=2**-24 * np.sqrt(elements)
  )
