import dataclasses

import pytest

from train.data import dataset_writer
from train.data.image_sources import VALIDATION
from train.demo_data import make_digits

HELD_OUT_DIGITS = 100
"""Evaluations would be more than half of what short runs take."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
  """The prepared digits of scikit-learn, to read from: those to train on, and a few held out."""
  folder = tmp_path_factory.mktemp("data") / "digits"
  source = make_digits.source()
  few = source.splits[VALIDATION][:HELD_OUT_DIGITS]
  splits = {**source.splits, VALIDATION: few}
  dataset_writer.write_dataset(folder, dataclasses.replace(source, splits=splits))
  return folder
