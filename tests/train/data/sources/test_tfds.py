import json

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source


def write(root, **options):
  splits = {
    "train": miniatures.tfds_examples(0, 10),
    "validation": miniatures.tfds_examples(20, 5),
    "test": [{**one, "label": [-1]} for one in miniatures.tfds_examples(30, 3)],
    "unsorted": miniatures.tfds_examples(40, 2),
  }
  return miniatures.write_tfds(root, splits, **options)


def test_a_data_set_of_tfds(tmp_path):
  source = read_source(write(tmp_path / "birds"))
  assert source.class_names == image_files.CLASS_NAMES
  assert source.how == "TensorFlow Datasets; images are the feature image, labels label"
  assert source.notes == (
    "left out: splits of other names: unsorted",
    "left out: test: 3 images without a label",
  )
  found = {image.read(): image.labels for image in source.splits["train"]}
  assert found == {miniatures.picture(number): (number % 3,) for number in range(10)}
  write_dataset(tmp_path / "a", source, files_per_split=3)
  write_dataset(tmp_path / "b", source, files_per_split=3, workers=1)
  assert image_files.file_hashes(tmp_path / "a") == image_files.file_hashes(tmp_path / "b")


def test_bad_examples_are_listed(tmp_path):
  examples = miniatures.tfds_examples(0, 8)
  bad = [
    b"no example",
    {"label": [1]},
    {"image": [miniatures.picture(1)]},
    {"image": [b"broken"], "label": [1]},
    {"image": [b"a", b"b"], "label": [1]},
    {"image": [miniatures.picture(1)], "label": [b"one"]},
  ]
  splits = {"train": examples + bad, "validation": miniatures.tfds_examples(20, 5)}
  source = read_source(miniatures.write_tfds(tmp_path / "birds", splits, shards=1))
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert manifest.skipped_images == tuple(
    f"birds-train.array_record-00000-of-00001/{index:07d}" for index in range(8, 14)
  )


def test_several_labels(tmp_path):
  examples = [{**one, "label": [index % 3, 2]} for index, one in
              enumerate(miniatures.tfds_examples(0, 20))]  # fmt: skip
  source = read_source(miniatures.write_tfds(tmp_path / "birds", {"train": examples}), 0.3)
  assert {image.labels for image in source.splits["train"]} <= {(0, 2), (1, 2), (2,)}


def the_folder_above(root):
  return "holds data sets of TensorFlow Datasets: give --source=.*/birds/1.0.0", root.parent


def tfrecords(root):
  edit(root, "dataset_info.json", lambda fields: fields.update(fileFormat="tfrecord"))
  return "files of the format tfrecord, of which only array_record is read: .*convert_format", root


def a_missing_file(root):
  (root / "birds-train.array_record-00001-of-00002").unlink()
  return r"birds-train.array_record-00001-of-00002: No such file", root


def a_damaged_file(root):
  miniatures.cut(root / "birds-train.array_record-00001-of-00002", 40_000)
  return r"birds-train.array_record-00001-of-00002 (cannot be read|has \d+ records)", root


def another_number_of_records(root):
  def change(fields):
    fields["splits"][0]["shardLengths"][0] = "6"

  edit(root, "dataset_info.json", change)
  return "has 5 records where .* has 6", root


def a_file_elsewhere(root):
  def change(fields):
    fields["splits"][0]["filepathTemplate"] = "../{DATASET}"

  edit(root, "dataset_info.json", change)
  return r"'\.\./birds' is not the name of a file beside it", root


def wrong_lengths(root):
  edit(root, "dataset_info.json", lambda fields: fields["splits"][0].update(shardLengths=["x"]))
  return "dataset_info.json is damaged: shardLengths of train", root


def no_splits(root):
  edit(root, "dataset_info.json", lambda fields: fields.pop("splits"))
  return "dataset_info.json is damaged: the whole has no field 'splits'", root


def two_images(root):
  def change(fields):
    features = fields["featuresDict"]["features"]
    features["left"] = features["image"]

  edit(root, "features.json", change)
  return "has 2 features that are images: of image, left, give --image_field= one", root


def fewer_names(root):
  (root / "label.labels.txt").write_text("ant\nbee\n")
  return "has the label 2, but there are 2 class names", root


def edit(root, name, change):
  fields = json.loads((root / name).read_text())
  change(fields)
  (root / name).write_text(json.dumps(fields))


@pytest.mark.parametrize(
  "change",
  [
    *(the_folder_above, tfrecords, a_missing_file, a_damaged_file, another_number_of_records),
    *(a_file_elsewhere, wrong_lengths, no_splits, two_images, fewer_names),
  ],
)
def test_data_sets_that_are_refused(tmp_path, change):
  message, path = change(write(tmp_path / "birds" / "1.0.0"))
  with pytest.raises(UserError, match=message):
    read_source(path)


def test_a_feature_may_be_named(tmp_path):
  root = write(tmp_path / "birds")
  two_images(root)
  assert read_source(root, image_field="image").class_names == image_files.CLASS_NAMES
  with pytest.raises(UserError, match="has no feature right; it has image, label, file_name, left"):
    read_source(root, image_field="right")


def test_a_split_of_damaged_records_is_not_left_out(tmp_path):
  splits = {
    "train": miniatures.tfds_examples(0, 10),
    "test": [b"no example"] * 2,
    "validation": [{**one, "image": []} for one in miniatures.tfds_examples(20, 3)],
  }
  source = read_source(miniatures.write_tfds(tmp_path / "birds", splits))
  assert {split: len(images) for split, images in source.splits.items()} == {
    "train": 10,
    "validation": 3,
    "test": 2,
  }
  assert all(image.problem for image in source.splits["test"] + source.splits["validation"])


def test_files_without_records_need_not_be_there(tmp_path):
  splits = {"train": miniatures.tfds_examples(0, 9), "test": miniatures.tfds_examples(20, 1)}
  root = miniatures.write_tfds(tmp_path / "birds", splits)
  (root / "birds-test.array_record-00000-of-00002").unlink()
  assert len(read_source(root).splits["validation"]) == 1
