import dataclasses

import pytest

from train.data import dataset_writer
from train.data.preparation.class_folders import VALIDATION
from train.demo_data import make_digits

HELD_OUT_DIGITS = 100
"""So few because evaluations of all would be more than half of what short runs take."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
  """Prepares the digits of scikit-learn: all that are trained on, and a few held out."""
  folder = tmp_path_factory.mktemp("data") / "digits"
  source = make_digits.source()
  few = source.splits[VALIDATION][:HELD_OUT_DIGITS]
  splits = {**source.splits, VALIDATION: few}
  dataset_writer.write_dataset(folder, dataclasses.replace(source, splits=splits))
  return folder
