import os

import numpy as np
import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from train.config.experiment import Data
from train.data import dataset
from train.data.dataset import balanced_class_weights
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source
from train.data.manifest import MANIFEST_NAME, load_manifest
from train.data.record_reader import RecordReader
from train.data.sources.own_source import Example


def test_balanced_weights_make_up_for_the_numbers_of_images(digits):
  weights = balanced_class_weights(Data(path=str(digits), num_classes=10))
  reader = RecordReader(digits, load_manifest(digits).splits["train"])
  labels = [reader.read(index).labels[0] for index in range(len(reader))]
  counts = np.bincount(labels, minlength=10)
  assert len(set(counts)) > 1
  assert weights.dtype == np.float32
  # As scikit-learn balances classes.
  np.testing.assert_allclose(weights, len(labels) / (10 * counts), rtol=1e-6)


def test_a_data_set_in_a_bucket_is_read_from_its_copy(folder, gcs):
  gcs.upload(folder, "data")
  data = Data(path=f"{gcs.url}/data", num_classes=len(load_manifest(folder).class_names))
  here = Data(path=str(folder), num_classes=data.num_classes)
  assert dataset.train_examples(data) == dataset.train_examples(here)
  copy = dataset.local_folder(data.path)
  assert os.listdir(copy) == ["manifest.json"]
  images, expected = (dataset.open_decoder(one, "validation").load(1) for one in (data, here))
  np.testing.assert_array_equal(images[0], expected[0])
  assert not list(copy.glob("train*"))
  dataset.fetch(data, "train", "validation")
  assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()}
  with pytest.raises(UserError, match="has no images in split 'test'"):
    dataset.fetch(data, "test")
  with pytest.raises(UserError, match=r"/other/manifest\.json is not there"):
    dataset.class_names(Data(path=f"{gcs.url}/other"))


def test_absent_classes_and_records_that_are_not_allowed_have_no_weight(tmp_path):
  def examples():
    labels = {"a": 0, "b": 0, "c": 0, "d": 1, "e": [0, 1]}
    for name, label in labels.items():
      yield Example(name, label, image_files.TEN_IMAGES[0][0])
    yield Example("v", 2, image_files.TEN_IMAGES[1][0], "validation")

  examples.class_names = ("x", "y", "absent")
  write_dataset(tmp_path / "data", read_source(examples))
  data = Data(path=str(tmp_path / "data"), num_classes=3)
  # Six labels of two classes.
  np.testing.assert_allclose(balanced_class_weights(data), [3 / 4, 3 / 2, 0])
  manifest = tmp_path / "data" / MANIFEST_NAME
  text = manifest.read_text()
  manifest.write_text(text.replace('"labels_per_record_max": 2', '"labels_per_record_max": 1'))
  assert manifest.read_text() != text
  np.testing.assert_allclose(balanced_class_weights(data), [2 / 3, 2, 0], rtol=1e-6)
