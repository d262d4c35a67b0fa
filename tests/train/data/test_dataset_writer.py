import os
import resource
import signal

import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.images.decoding import decode_image
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.train.data import image_files
from train.data import dataset_writer
from train.data.dataset_writer import _tasks, write_dataset
from train.data.image_sources import describe_classes_left_out, read_source
from train.data.manifest import MANIFEST_NAME, load_manifest
from train.data.sources.images import ImageFile


def prepare(source, out, evaluation_share=0.3, **options):
  return write_dataset(out, read_source(source, evaluation_share), **options)


def test_class_folders_keep_every_file_as_it_is(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 9)
  manifest = prepare(source, tmp_path / "data")
  assert manifest.class_names == image_files.CLASS_NAMES
  assert manifest.labels_per_record_max == 1
  stored = [
    record
    for split in ("train", "validation")
    for record in image_files.read_all(tmp_path / "data", split)
  ]
  expected = {
    path.read_bytes(): (image_files.CLASS_NAMES.index(path.parent.name),)
    for path in source.rglob("*")
    if path.is_file()
  }
  assert len(stored) == len(expected) == 27
  assert {record.image: record.labels for record in stored} == expected


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_folders_of_splits(tmp_path, held_out):
  image_files.write_class_folders(tmp_path / "source" / "train", 4)
  image_files.write_class_folders(tmp_path / "source" / held_out, 2)
  manifest = prepare(tmp_path / "source", tmp_path / "data")
  assert {name: split.records for name, split in manifest.splits.items()} == {
    "train": 12,
    "validation": 6,
  }


def test_a_third_split_is_kept_apart(tmp_path):
  for number, split in enumerate(("train", "val", "test")):
    image_files.write_class_folders(tmp_path / "source" / split, number + 1)
  manifest = prepare(tmp_path / "source", tmp_path / "data")
  assert {name: split.records for name, split in manifest.splits.items()} == {
    "train": 3,
    "validation": 6,
    "test": 9,
  }


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_keep_every_pixel(tmp_path, ending):
  source = image_files.write_idx_source(tmp_path / "source", ending)
  manifest = prepare(source, tmp_path / "data")
  assert manifest.class_names == tuple("0123456789")
  images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
  stored = image_files.read_all(tmp_path / "data", "train")
  found = {decode_image(record.image)[:, :, 0].tobytes() for record in stored}
  assert found == {image.tobytes() for image in images}
  assert manifest.splits["validation"].records == 5


def test_equal_arguments_give_equal_bytes_whatever_the_workers(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 10)
  prepare(source, tmp_path / "a", files_per_split=3)
  with group_umask():
    prepare(source, tmp_path / "b", files_per_split=3, workers=2)
  assert modes_beside_group_umask(tmp_path / "b") == {}
  assert image_files.file_hashes(tmp_path / "a") == image_files.file_hashes(tmp_path / "b")
  prepare(source, tmp_path / "c", files_per_split=3, seed=1)
  assert image_files.file_hashes(tmp_path / "a") != image_files.file_hashes(tmp_path / "c")


def test_records_are_mixed_over_the_files(tmp_path):
  image_files.write_class_folders(tmp_path / "source", 40)
  manifest = prepare(tmp_path / "source", tmp_path / "data", files_per_split=2)
  files = manifest.splits["train"].record_files
  labels = [record.labels[0] for record in image_files.read_all(tmp_path / "data", "train")]
  first = labels[: files[0].records]
  # About 14 of each class in each half; sorted by class, one would have none of the third.
  assert all(first.count(label) >= 5 for label in range(3))
  assert [file.file for file in files] == [
    "train-00000-of-00002.array_record",
    "train-00001-of-00002.array_record",
  ]


def test_more_record_files_than_a_process_may_open(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  # Those of this process that are open already count too.
  limit = max(map(int, os.listdir("/proc/self/fd"))) + 12
  resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
  try:
    manifest = prepare(source, tmp_path / "data", files_per_split=20)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert len(manifest.splits["train"].record_files) == 20


def test_a_finished_data_set_is_not_written_over(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  prepare(source, tmp_path / "data")
  before = image_files.file_hashes(tmp_path / "data")
  with pytest.raises(UserError, match="already holds a finished data set"):
    prepare(source, tmp_path / "data")
  assert image_files.file_hashes(tmp_path / "data") == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "thesis.txt").write_text("mine")
  with pytest.raises(UserError, match=r"holds other files, such as thesis\.txt"):
    prepare(source, tmp_path / "data")
  assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.txt"]


def test_the_beginning_of_another_data_set_is_not_continued(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  (source / "ant" / "0009.png").write_bytes(b"")
  with pytest.raises(UserError, match=r"0009\.png"):
    prepare(source, tmp_path / "data")
  with pytest.raises(UserError, match="beginning of a data set of another source or other opt"):
    prepare(source, tmp_path / "data", seed=1)


@pytest.mark.parametrize(
  ("kind", "workers"), [*((kind, 0) for kind in image_files.BAD_IMAGES), ("cut short", 1)]
)
def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(tmp_path, kind, workers):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  (source / "bee" / "bad.jpg").write_bytes(image_files.BAD_IMAGES[kind])
  with pytest.raises(UserError, match=r"image bee/bad\.jpg cannot be decoded \("):
    prepare(source, tmp_path / "data", workers=workers)
  assert not (tmp_path / "data" / MANIFEST_NAME).exists()


def test_bad_images_are_left_out_on_request_and_listed(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  for number, content in enumerate(image_files.BAD_IMAGES.values()):
    (source / "bee" / f"bad{number}.jpg").write_bytes(content)
  manifest = prepare(source, tmp_path / "data", files_per_split=3, skip_bad_images=True)
  assert manifest.skipped_images == tuple(f"bee/bad{number}.jpg" for number in range(4))
  assert load_manifest(tmp_path / "data") == manifest
  assert sum(split.records for split in manifest.splits.values()) == 60
  for split in ("train", "validation"):
    ids = [record.id for record in image_files.read_all(tmp_path / "data", split)]
    assert ids == list(range(len(ids)))


def test_bad_images_may_be_left_out_after_one_was_met(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  (source / "bee" / "bad.jpg").write_bytes(b"")
  prepare(source, tmp_path / "whole", files_per_split=3, skip_bad_images=True)
  out = tmp_path / "data"
  with pytest.raises(UserError, match=r"add --skip_bad_images to .* go on from here"):
    prepare(source, out, files_per_split=3)
  finished = {path: path.stat().st_ino for path in out.glob("*.array_record")}
  assert finished
  prepare(source, out, files_per_split=3, skip_bad_images=True)
  assert image_files.file_hashes(out) == image_files.file_hashes(tmp_path / "whole")
  assert {path: path.stat().st_ino for path in finished} == finished


def test_an_image_that_was_left_out_is_met_again_without_the_request(tmp_path, monkeypatch):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  (source / "bee" / "bad.jpg").write_bytes(b"")
  with monkeypatch.context() as patch:
    patch.setattr(dataset_writer, "save_manifest", lambda *unused_arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      prepare(source, tmp_path / "data", skip_bad_images=True)
  with pytest.raises(UserError, match=r"image bee/bad\.jpg cannot be decoded"):
    prepare(source, tmp_path / "data")


def test_a_class_whose_images_are_all_left_out_is_said(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  for path in (source / "bee").iterdir():
    path.write_bytes(b"")
  found = read_source(source, 0.3)
  manifest = prepare(source, tmp_path / "data", skip_bad_images=True)
  assert describe_classes_left_out(found, manifest.skipped_images) == (
    "note: train has no image of 1 class: bee\nnote: validation has no image of 1 class: bee"
  )
  assert describe_classes_left_out(found, manifest.skipped_images[1:]).count("\n") == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_run_with_its_name(tmp_path, workers):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  listed = read_source(source, 0.3)
  (source / "ant" / "0001.png").unlink()
  with pytest.raises(UserError, match=r"cannot read image ant/0001\.png: No such file"):
    write_dataset(tmp_path / "data", listed, workers=workers)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_unusual_color_spaces_are_images(tmp_path, mode):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  picture = image_files.Image.fromarray(image_files.noise(0)).convert(mode)
  (source / "ant" / "unusual.JPEG").write_bytes(image_files.encode(picture, "JPEG"))
  manifest = prepare(source, tmp_path / "data")
  assert sum(split.records for split in manifest.splits.values()) == 16


def test_tasks_of_workers_are_small_in_number_and_in_bytes():
  def image(size_bytes):
    return ImageFile("", (0,), "", size_bytes, 0)

  def sizes(*images):
    return [len(task) for task in _tasks([image(one) for one in images])]

  assert sizes() == []
  assert sizes(*[1] * 40) == [16, 16, 8]
  # A camera's files.
  assert sizes(*[10 * 2**20] * 5) == [2, 2, 1]
  assert sizes(*[100 * 2**20] * 3, 1, 1) == [1, 1, 1, 2]


def test_sigterm_ends_the_workers_in_order():
  """Python would complain of semaphores that a process killed by it had left behind."""
  previous = signal.signal(signal.SIGTERM, lambda *unused: None)
  try:
    with pytest.raises(SystemExit) as ended, dataset_writer._ordered_map(1):
      signal.raise_signal(signal.SIGTERM)
  finally:
    signal.signal(signal.SIGTERM, previous)
  assert ended.value.code == 143
