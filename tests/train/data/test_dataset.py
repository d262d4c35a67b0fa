import numpy as np

from train.config.experiment import Data
from train.data.dataset import balanced_class_weights
from train.data.manifest import load_manifest
from train.data.record_reader import RecordReader


def test_balanced_weights_make_up_for_the_numbers_of_images(digits):
  weights = balanced_class_weights(Data(path=str(digits), num_classes=10))
  reader = RecordReader(digits, load_manifest(digits).splits["train"])
  labels = [reader.read(index).labels[0] for index in range(len(reader))]
  counts = np.bincount(labels, minlength=10)
  assert len(set(counts)) > 1
  assert weights.dtype == np.float32
  # As scikit-learn balances classes.
  np.testing.assert_allclose(weights, len(labels) / (10 * counts), rtol=1e-6)
