"""Fixtures for the tests of kernels, which run in Pallas's TPU interpreter."""

import pytest
from jax.experimental.pallas import tpu as pltpu


def _interpret(cores):
  return pltpu.force_tpu_interpret_mode(
    pltpu.InterpretParams(detect_races=True, num_cores_or_threads=cores)
  )


@pytest.fixture(
  params=[
    pytest.param(1, id="one_core"),
    pytest.param(2, id="two_cores", marks=pytest.mark.slow),
  ]
)
def interpreted(request):
  """Runs TPU kernels in the TPU interpreter.

  With one core it compiles a kernel's body; with several it runs the body operation by operation in
  threads, which takes 15 times as long. So all tests run on two cores in `make test-all`, and by
  default those that take `on_two_cores`.
  """
  with _interpret(request.param):
    yield
  pltpu.reset_tpu_interpret_mode_state()


@pytest.fixture
def on_two_cores(interpreted):
  """Runs TPU kernels on two cores that work at the same time, and looks for races."""
  with _interpret(2):
    yield
  pltpu.reset_tpu_interpret_mode_state()
