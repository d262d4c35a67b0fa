"""Fixtures for the tests of kernels."""

import pytest
from jax.experimental.pallas import tpu as pltpu


@pytest.fixture
def interpreted():
  """Runs TPU kernels in the TPU interpreter: on two cores, looking for races."""
  with pltpu.force_tpu_interpret_mode(
    pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  ):
    yield
  pltpu.reset_tpu_interpret_mode_state()
