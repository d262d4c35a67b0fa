import pytest

from tests.train.sweep.trials import FIXED, make_trial
from train.sweep.folder import SweepFolder


@pytest.fixture
def folder(tmp_path):
  """An empty sweep folder."""
  made = SweepFolder(tmp_path / "sweep")
  made.create(FIXED)
  return made


@pytest.fixture
def trial(folder):
  """A trial that waits in the folder."""
  one = make_trial()
  assert folder.add(one)
  return one
