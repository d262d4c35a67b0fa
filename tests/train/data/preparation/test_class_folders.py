"""Folder trees as people have them: what is understood, and what is refused, with advice."""

import os
import pathlib

import pytest

from nfnet.errors import UserError
from train.data.image_sources import describe_source, read_source


def write_tree(root, *names):
  """Writes an empty file under each name; nothing here is decoded."""
  for name in names:
    path = pathlib.Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return root


def images(*folders, count=4):
  return [f"{folder}/{number}.jpg" for folder in folders for number in range(count)]


def counts(source):
  return {split: len(files) for split, files in source.splits.items()}


AMBIGUOUS = {
  "a training folder that is not a split by its name": (
    [*images("training_set/ant", "training_set/bee", "test_set/ant", "test_set/bee")],
    "rename them to train, val and test, or give --layout=classes",
  ),
  "COCO": (images("train2017", "val2017"), "look like splits"),
  "CycleGAN": (images("trainA", "trainB", "testA", "testB"), "look like splits"),
  "a class named train": (images("train", "car", "bus"), "give --layout=classes"),
  "a split beside more": (images("train/ant", "train/bee", "val/ant", "extra"), "beside others"),
  "valid and invalid": (images("valid", "invalid"), "give --layout=classes"),
  "no training split": (images("val/ant", "val/bee", "test/ant"), "none named train"),
  "splits without classes": (images("train", "val"), r"train/CLASS/IMAGE, or --layout=classes"),
  "labels of ImageNet's validation images in a table": (
    images("train/ant", "train/bee", "val"),
    "val has no class folders for its 4 images",
  ),
  "two names of a split": (images("train/ant", "training/ant"), "both train and training"),
  "two more": (images("train/ant", "train/bee", "val/ant", "valid/ant"), "both val and valid"),
  "labels in a table": ([*images("images"), "table.csv"], "only one class.*--labels=FILE"),
  "a folder around it": (images("data/ant", "data/bee"), "--source=.*/data, or"),
  "a taxonomy": (images("animal/ant", "animal/bee", "car/van"), "--merge_subfolders"),
  "nested and not": (images("ant", "ant/winged", "bee"), "ant has subfolders with images"),
  "classes before splits": (images("ant/train", "ant/test", "bee/train"), "splits come first: "),
  "ILSVRC": (images("Data/CLS-LOC/train/ant", "Data/CLS-LOC/val/ant"), "Data has subfolders"),
  "a class of the held-out split alone": (
    images("train/ant", "train/bee", "test/unknown"),
    "test/unknown' has no counterpart in train",
  ),
  "one name in two compositions": (images("caf\u00e9", "cafe\u0301"), "composes letters"),
  "a space at the end": (images("ant", "ant "), "only in spaces, unseen characters"),
  "a space that does not break": (images("new york", "new\u00a0york"), "differ only in spaces"),
  "a space of no width": (images("ant", "ant\u200b"), "differ only in spaces"),
  "a byte order mark": (images("\ufeffant", "ant"), "differ only in spaces"),
  "nothing that can be seen": (images("\u200b", "ant"), "which is empty"),
  "a space at the end in one split": (
    images("train/ant", "train/bee", "val/ant "),
    "val/ant ' has no counterpart",
  ),
  "an escape sequence": (images("ant\x1b[2J", "bee"), r"named 'ant\\x1b\[2J'"),
  "a line end": (images("ant\nbee", "bee"), r"named 'ant\\nbee'"),
  "Latin-1": (images(os.fsdecode(b"caf\xe9"), "bee"), r"named 'caf\\udce9', .* not UTF-8: rename"),
  "another direction": (images("ant\u202egpj", "bee"), r"named 'ant\\u202egpj'"),
  "blank": (images(" ", "bee"), "named ' '"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_could_be_meant_in_two_ways_is_refused_with_what_to_do(tmp_path, kind):
  names, message = AMBIGUOUS[kind]
  with pytest.raises(UserError, match=message) as caught:
    read_source(write_tree(tmp_path, *names), 0.3)
  assert str(caught.value).isprintable()


@pytest.mark.parametrize(
  ("train", "held_out"),
  [("train", "val"), ("training", "validation"), ("Train", "Valid"), ("TRAIN", "Testing")],
)
def test_names_of_splits(tmp_path, train, held_out):
  folders = [f"{split}/{name}" for split in (train, held_out) for name in ("ant", "bee")]
  source = read_source(write_tree(tmp_path, *images(*folders)))
  assert source.class_names == ("ant", "bee")
  assert counts(source) == {"train": 8, "validation": 8}
  assert f"{held_out} (validation)" in describe_source(source)


def test_what_the_folders_are_can_be_said(tmp_path):
  write_tree(tmp_path, *images("train", "car", "valid", count=20))
  source = read_source(tmp_path, 0.3, layout="classes")
  assert source.class_names == ("car", "train", "valid")
  write_tree(tmp_path, *images("train/ant", "train/bee", "valid/ant"))
  source = read_source(tmp_path, layout="splits")
  assert source.class_names == ("ant", "bee")
  assert counts(source) == {"train": 8, "validation": 4}
  text = describe_source(source)
  assert "20 images of" in text
  assert "left out: folders that are not splits: car" in text
  assert "validation has no image of 1 class: bee" in text


def test_classes_may_have_names_of_splits_where_classes_are_expected(tmp_path):
  write_tree(tmp_path, *images("train/train", "train/test", "val/train", "val/test"))
  assert read_source(tmp_path).class_names == ("test", "train")


def test_names_in_any_script_are_classes(tmp_path):
  names = ("Stra\u00dfe", "\u732b", "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627", "new\u00a0york")
  source = read_source(write_tree(tmp_path, *images(*names, count=20)), 0.3)
  assert source.class_names == tuple(sorted(names))


def test_a_name_may_be_composed_in_another_way_in_each_split(tmp_path):
  write_tree(tmp_path, *images("train/caf\u00e9", "train/bee", "val/cafe\u0301", "val/bee"))
  source = read_source(tmp_path)
  assert source.class_names == ("bee", "caf\u00e9")
  labels = {image.name.split("/")[1]: image.labels[0] for image in source.splits["validation"]}
  assert labels == {"bee": 0, "cafe\u0301": 1}


def test_names_for_idx_files_are_refused_for_folders(tmp_path):
  with pytest.raises(UserError, match=r"--class_names is for sources .* is read as class_folders"):
    read_source(write_tree(tmp_path, *images("ant", "bee", count=20)), 0.3, ["bee", "ant"])


def test_subfolders_are_merged_on_request(tmp_path):
  write_tree(tmp_path, *images("ant", "ant/2023/may", "ant/2024", "bee/2023", count=20))
  source = read_source(tmp_path, 0.3, merge_subfolders=True)
  assert source.class_names == ("ant", "bee")
  labels = [image.labels[0] for files in source.splits.values() for image in files]
  assert (labels.count(0), labels.count(1)) == (60, 20)


def test_test_images_without_labels_are_left_out(tmp_path):
  write_tree(tmp_path, *images("train/ant", "train/bee", "val/ant", "val/bee", "test"))
  source = read_source(tmp_path)
  assert counts(source) == {"train": 8, "validation": 8}
  assert "left out: test: 4 images in no class folder" in describe_source(source)


def test_the_description_has_a_bounded_length(tmp_path):
  write_tree(tmp_path, *images(*(f"class{number:03d}" for number in range(100)), count=1))
  write_tree(tmp_path, *(f"class000/file.{number}" for number in range(50)))
  lines = describe_source(read_source(tmp_path, 0.3)).splitlines()
  assert "  and 80 more classes" in lines
  assert "ignored: 45 files with other endings" in lines
  assert len(lines) < 40
  assert max(map(len, lines)) < 1500
