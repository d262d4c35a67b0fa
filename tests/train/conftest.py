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
  write_digits(folder)
  return folder


def write_digits(folder, train_images=make_digits.TRAIN_IMAGES, held_out=HELD_OUT_DIGITS):
  """Writes a data set of so many digits."""
  source = make_digits.source(train_images)
  splits = {**source.splits, VALIDATION: source.splits[VALIDATION][:held_out]}
  dataset_writer.write_dataset(folder, dataclasses.replace(source, splits=splits))
