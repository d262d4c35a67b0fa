import jax.numpy as jnp
import numpy as np
import pytest

from train.step.moving_average import initial_ema, ramped_decay


@pytest.mark.parametrize("step", [0, 9, 10**6])
def test_the_decay_is_ramped(step):
  decay = ramped_decay(jnp.asarray(step, jnp.int32), 0.999)
  np.testing.assert_allclose(decay, min(0.999, (1 + step) / (10 + step)), rtol=1e-6)


def test_the_average_starts_as_a_copy_of_the_parameters():
  parameters = {"a": jnp.arange(3.0)}
  ema = initial_ema(parameters)
  np.testing.assert_array_equal(ema["a"], parameters["a"])
  # The training step donates both.
  assert ema["a"].unsafe_buffer_pointer() != parameters["a"].unsafe_buffer_pointer()
