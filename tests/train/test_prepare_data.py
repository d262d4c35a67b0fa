import gzip
import hashlib
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.images.decoding import decode_image
from tests.repository import ROOT
from tests.train.data import image_files
from train.data import dataset_writer, image_sources, record_reader, records


def prepare(source, out, evaluation_share=0.3, **options):
  return dataset_writer.write_dataset(
    out, image_sources.read_source(source, evaluation_share), **options
  )


def run_main(*arguments, interpreter_arguments=("-m", "train.prepare_data")):
  return subprocess.run(
    [sys.executable, *interpreter_arguments, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


RUN_WITH_LITTLE_DISK = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
runpy.run_module("train.prepare_data", run_name="__main__", alter_sys=True)
"""


def read_all(folder, split):
  manifest = records.load_manifest(folder)
  reader = record_reader.RecordReader(folder, manifest.splits[split])
  return [reader.read(index) for index in range(len(reader))]


def file_hashes(folder):
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


def write_idx(path, values):
  header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
  content = header + values.tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_source(folder, ending="", train=12, held_out=5):
  generator = np.random.default_rng(0)
  folder.mkdir()
  for prefix, count in (("train", train), ("t10k", held_out)):
    images = generator.integers(0, 256, (count, 28, 28), np.uint8)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(count, dtype=np.uint8) % 10)
  return folder


def test_class_folders_keep_every_file_as_it_is(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 9)
  manifest = prepare(source, tmp_path / "data")
  assert manifest.class_names == image_files.CLASS_NAMES
  assert manifest.labels_per_record_max == 1
  stored = [
    record for split in ("train", "validation") for record in read_all(tmp_path / "data", split)
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


def test_images_added_later_move_no_other_image_across_the_splits(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  before = image_sources.read_source(source, 0.3).splits
  image_files.write_class_folders(source, 5, class_names=("dog",))
  after = image_sources.read_source(source, 0.3).splits
  for split, images in before.items():
    assert {image.name for image in images} <= {image.name for image in after[split]}
  assert len(before["validation"]) == pytest.approx(0.3 * 60, abs=11)  # 3 standard deviations


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_keep_every_pixel(tmp_path, ending):
  source = write_idx_source(tmp_path / "source", ending)
  manifest = prepare(source, tmp_path / "data")
  assert manifest.class_names == tuple("0123456789")
  images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
  stored = read_all(tmp_path / "data", "train")
  found = {decode_image(record.image)[:, :, 0].tobytes() for record in stored}
  assert found == {image.tobytes() for image in images}
  assert manifest.splits["validation"].records == 5


def test_equal_arguments_give_equal_bytes_whatever_the_workers(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 10)
  prepare(source, tmp_path / "a", shards=3)
  prepare(source, tmp_path / "b", shards=3, workers=2)
  assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
  prepare(source, tmp_path / "c", shards=3, seed=1)
  assert file_hashes(tmp_path / "a") != file_hashes(tmp_path / "c")


def test_records_are_mixed_over_the_shards(tmp_path):
  image_files.write_class_folders(tmp_path / "source", 40)
  manifest = prepare(tmp_path / "source", tmp_path / "data", shards=2)
  shards = manifest.splits["train"].shards
  labels = [record.labels[0] for record in read_all(tmp_path / "data", "train")]
  first = labels[: shards[0].records]
  # About 14 of each class in each half; sorted by class, one would have none of the third.
  assert all(first.count(label) >= 5 for label in range(3))
  assert [shard.file for shard in shards] == [
    "train-00000-of-00002.array_record",
    "train-00001-of-00002.array_record",
  ]


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 200, height=100, width=100)
  prepare(source, tmp_path / "whole", shards=150)
  out = tmp_path / "data"
  arguments = [f"--source={source}", f"--out={out}", "--evaluation_share=0.3", "--shards=150"]
  process = subprocess.Popen(
    [sys.executable, "-m", "train.prepare_data", *arguments, "--workers=1"],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  while process.poll() is None and len(list(out.glob("*.array_record"))) < 3:
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (out / records.MANIFEST_NAME).exists()
  finished = {path: path.stat().st_ino for path in out.glob("*.array_record")}
  assert 3 <= len(finished) < 300
  completed = run_main(*arguments, "--workers=0")
  assert completed.returncode == 0, completed.stderr
  assert file_hashes(out) == file_hashes(tmp_path / "whole")
  # The last of them may have lost its note in partial/, and is then written again.
  assert sum(path.stat().st_ino == inode for path, inode in finished.items()) >= len(finished) - 1


def test_a_full_disk_is_one_line_and_the_run_can_be_continued(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 30, height=100, width=100)
  arguments = [f"--source={source}", f"--out={tmp_path / 'data'}", "--workers=0"]
  failed = run_main(*arguments, interpreter_arguments=("-c", RUN_WITH_LITTLE_DISK))
  assert failed.returncode == 2
  assert "Traceback" not in failed.stderr
  assert "train-00000-of-00001.array_record" in failed.stderr.splitlines()[-1]
  assert "File too large" in failed.stderr.splitlines()[-1]
  completed = run_main(*arguments)
  assert completed.returncode == 0, completed.stderr


def test_a_finished_data_set_is_not_written_over(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  prepare(source, tmp_path / "data")
  before = file_hashes(tmp_path / "data")
  with pytest.raises(UserError, match="already holds a finished data set"):
    prepare(source, tmp_path / "data")
  assert file_hashes(tmp_path / "data") == before


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


GOOD_JPEG = image_files.encode(image_files.noise(0), "JPEG")
BAD_IMAGES = {
  "empty": b"",
  "cut short": GOOD_JPEG[: len(GOOD_JPEG) // 2],
  "garbage": b"\xff\xd8\xff" + bytes(100),
  "gif": image_files.encode(image_files.noise(0), "GIF"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(tmp_path, kind, workers):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  (source / "bee" / "bad.jpg").write_bytes(BAD_IMAGES[kind])
  with pytest.raises(UserError, match=r"image bee/bad\.jpg cannot be decoded \("):
    prepare(source, tmp_path / "data", workers=workers)
  assert not (tmp_path / "data" / records.MANIFEST_NAME).exists()


def test_bad_images_are_left_out_on_request_and_listed(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 20)
  for number, content in enumerate(BAD_IMAGES.values()):
    (source / "bee" / f"bad{number}.jpg").write_bytes(content)
  manifest = prepare(source, tmp_path / "data", shards=3, skip_bad_images=True)
  assert manifest.skipped_images == tuple(f"bee/bad{number}.jpg" for number in range(4))
  assert records.load_manifest(tmp_path / "data") == manifest
  assert sum(split.records for split in manifest.splits.values()) == 60
  for split in ("train", "validation"):
    ids = [record.id for record in read_all(tmp_path / "data", split)]
    assert ids == list(range(len(ids)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_run_with_its_name(tmp_path, workers):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  listed = image_sources.read_source(source, 0.3)
  (source / "ant" / "0001.png").unlink()
  with pytest.raises(UserError, match=r"cannot read image ant/0001\.png: No such file"):
    dataset_writer.write_dataset(tmp_path / "data", listed, workers=workers)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_unusual_color_spaces_are_images(tmp_path, mode):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  picture = image_files.Image.fromarray(image_files.noise(0)).convert(mode)
  (source / "ant" / "unusual.JPEG").write_bytes(image_files.encode(picture, "JPEG"))
  manifest = prepare(source, tmp_path / "data")
  assert sum(split.records for split in manifest.splits.values()) == 16


def no_folder(root):
  return "does not exist"


def empty_folder(root):
  root.mkdir()
  return "has no class folders"


def images_without_class_folders(root):
  root.mkdir()
  (root / "a.jpg").write_bytes(GOOD_JPEG)
  return "has no class folders"


def class_folder_without_images(root):
  image_files.write_class_folders(root, 3)
  (root / "dog").mkdir()
  (root / "dog" / "readme.txt").write_text("none")
  return "class folder .*dog has no image"


def held_out_class_without_counterpart(root):
  image_files.write_class_folders(root / "train", 2)
  image_files.write_class_folders(root / "val", 2, class_names=("dog",))
  return "class folder .*val/dog has no counterpart"


def two_held_out_folders(root):
  for split in ("train", "val", "validation"):
    image_files.write_class_folders(root / split, 1)
  return "both val and validation"


def too_few_images_to_hold_out(root):
  image_files.write_class_folders(root, 1, class_names=("ant",))
  return "leaves none for"


def idx_without_labels(root):
  write_idx_source(root)
  (root / "t10k-labels-idx1-ubyte").unlink()
  return r"has no file t10k-labels-idx1-ubyte"


def idx_cut_short(root):
  write_idx_source(root)
  path = root / "train-images-idx3-ubyte"
  path.write_bytes(path.read_bytes()[:-1])
  return "train-images-idx3-ubyte has 9407 values"


def compressed_idx_cut_short(root):
  write_idx_source(root, ".gz")
  path = root / "train-images-idx3-ubyte.gz"
  path.write_bytes(path.read_bytes()[:-20])
  return "train-images-idx3-ubyte.gz is damaged"


def idx_that_is_none(root):
  write_idx_source(root)
  (root / "train-labels-idx1-ubyte").write_bytes(b"<!doctype html>")
  return "train-labels-idx1-ubyte is no idx file"


def more_idx_images_than_labels(root):
  write_idx_source(root)
  write_idx(root / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))
  return "12 train images but 11 labels"


@pytest.mark.parametrize(
  "write_source",
  [
    no_folder,
    empty_folder,
    images_without_class_folders,
    class_folder_without_images,
    held_out_class_without_counterpart,
    two_held_out_folders,
    too_few_images_to_hold_out,
    idx_without_labels,
    idx_cut_short,
    compressed_idx_cut_short,
    idx_that_is_none,
    more_idx_images_than_labels,
  ],
)
def test_sources_that_are_refused(tmp_path, write_source):
  message = write_source(tmp_path / "source")
  with pytest.raises(UserError, match=message):
    image_sources.read_source(tmp_path / "source")


def test_files_that_are_no_images_are_counted(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 5)
  for name in ("a.txt", "b.TXT", "c.bmp", ".hidden"):
    (source / "ant" / name).write_text("")
  assert image_sources.read_source(source, 0.3).ignored_suffixes == {".bmp": 1, ".txt": 2}


def test_the_program_from_folder_to_verified_data_set(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 10)
  out = tmp_path / "data"
  completed = run_main(f"--source={source}", f"--out={out}", "--workers=2")
  assert completed.returncode == 0, completed.stderr
  assert "3 classes, verified" in completed.stdout
  assert {path.suffix for path in out.iterdir()} == {".json", ".array_record"}
  assert run_main(f"--verify={out}").returncode == 0
  path = out / "train-00000-of-00001.array_record"
  os.truncate(path, path.stat().st_size - 1)
  damaged = run_main(f"--verify={out}")
  assert damaged.returncode == 2
  assert str(path) in damaged.stderr.splitlines()[-1]
  assert "Traceback" not in damaged.stderr
