import pytest

from train.demo_data import make_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
  """The prepared digits of scikit-learn, to read from."""
  folder = tmp_path_factory.mktemp("data") / "digits"
  make_digits.make(folder)
  return folder
