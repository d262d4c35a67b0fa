import pytest

from tests.nfnet.weights.whole_networks import distinct_parameters


@pytest.fixture(scope="session")
def parameters():
  """Returns parameters of P0, of which no two are equal."""
  return distinct_parameters("P0")
