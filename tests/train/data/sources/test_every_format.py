"""What preparation promises, it keeps for every format: it continues, refuses, shows progress."""

import re
import sys

import numpy as np
import pytest

from nfnet.errors import UserError
from tests.streams import Stream
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import write_dataset
from train.data.image_sources import FORMATS, describe_source, read_source
from train.data.preparation import progress
from train.data.sources.own_source import Example
from train.data.sources.tars import class_tars


def write_cifar(root):
  root.mkdir()
  for name, content in miniatures.cifar_10_files(image_files.CLASS_NAMES).items():
    (root / name).write_bytes(content)
  return root


def write_parquet(root):
  images = [(miniatures.picture(number), number % 3) for number in range(18)]
  # A process keeps a row group in memory, so all of these images might be those of before a change.
  path = root / "train-00000-of-00001.parquet"
  miniatures.write_parquet(path, images, row_group_size=len(images))
  return root


def write_tfds(root):
  splits = {"train": miniatures.tfds_examples(0, 12), "test": miniatures.tfds_examples(20, 6)}
  return miniatures.write_tfds(root, splits)


def write_own_source(root):
  root.mkdir()
  for number in range(18):
    (root / f"{number:02d}.jpg").write_bytes(miniatures.picture(number))

  def pictures():
    for path in sorted(root.iterdir()):
      yield Example(path.name, image_files.CLASS_NAMES[int(path.stem) % 3], path)

  return pictures


SOURCES = {
  "class_folders": lambda root: image_files.write_class_folders(root, 6),
  "idx": image_files.write_idx_source,
  "cifar": write_cifar,
  "table": miniatures.write_table,
  "imagenet": miniatures.write_imagenet,
  "class_tars": miniatures.write_class_tars,
  "webdataset": miniatures.write_webdataset,
  "parquet": write_parquet,
  "tfds": write_tfds,
  "python": write_own_source,
}
"""Writes a source of a format to a folder, and returns what `read_source` takes."""
BYTES_LISTED = {"imagenet", "class_tars", "webdataset", "parquet", "tfds"}
"""Formats of which the bytes of large files are read to list them, with a progress bar."""


@pytest.fixture(params=FORMATS[1:])
def source_format(request):
  return request.param


@pytest.fixture
def prepare(source_format, tmp_path):
  """Returns a function that gives the same command, with any folder for its result."""
  source = SOURCES[source_format](tmp_path / "source")

  def prepare(name, **options):
    return write_dataset(tmp_path / name, read_source(source, 0.3), files_per_split=3, **options)

  return prepare


class StoppedError(Exception):
  """Stands for a kill; Python cleans up, but the data set's code has no part in it."""


@pytest.fixture
def stopped(prepare, tmp_path, monkeypatch):
  """Stops a command after its second record file, which has not been noted; returns the folder."""
  save_note = progress.Progress.save_note

  def stop_at_the_second(self, note):
    if note.record_file.file == "train-00001-of-00003.array_record":
      raise StoppedError
    save_note(self, note)

  with monkeypatch.context() as patch:
    patch.setattr(progress.Progress, "save_note", stop_at_the_second)
    with pytest.raises(StoppedError):
      prepare("data")
  return tmp_path / "data"


def change_an_image(root, source_format):
  """Changes a byte of an image where it lies, so that names and sizes are what they were."""
  image = {
    "idx": np.random.default_rng(0).integers(0, 256, 784, np.uint8).tobytes(),
    "cifar": bytes(32),
  }.get(source_format, miniatures.picture(0))
  part = image[len(image) // 2 :][:16]
  for path in sorted(root.rglob("*")):
    content = bytearray(path.read_bytes() if path.is_file() else b"")
    if (place := content.find(part)) >= 0:
      content[place] ^= 1
      path.write_bytes(content)
      return
  raise AssertionError(f"no file below {root} has the image")


def test_an_interrupted_command_continues_to_the_same_bytes(prepare, stopped, tmp_path):
  first = stopped / "train-00000-of-00003.array_record"
  inode = first.stat().st_ino
  prepare("data")
  prepare("whole")
  assert image_files.file_hashes(stopped) == image_files.file_hashes(tmp_path / "whole")
  assert first.stat().st_ino == inode


def test_a_source_that_has_changed_is_refused(prepare, stopped, source_format, tmp_path):
  prepare("before")
  begun = image_files.file_hashes(stopped)
  change_an_image(tmp_path / "source", source_format)
  with pytest.raises(UserError) as refused:
    prepare("data")
  assert str(refused.value) == (
    f"{stopped} holds the beginning of a data set of another source or other options: delete it or "
    "choose another --out"
  )
  assert image_files.file_hashes(stopped) == begun
  # The changed image may be one that cannot be decoded any more.
  prepare("after", skip_bad_images=True)
  before, after = (image_files.file_hashes(tmp_path / name) for name in ("before", "after"))
  assert before != after


def test_progress_is_shown_on_a_terminal_only(prepare, stopped, source_format, monkeypatch):
  monkeypatch.setattr(class_tars, "PROGRESS_DELAY_SECONDS", 0)
  monkeypatch.setattr(sys, "stderr", Stream(is_terminal=True))
  manifest = prepare(stopped.name)
  # A bar is drawn anew after a carriage return.
  ends = [line.rpartition("\r")[2] for line in sys.stderr.getvalue().split("\n")[:-1]]
  for name, split in manifest.splits.items():
    (end,) = (end for end in ends if end.startswith(f"{name}: "))
    assert f"| {split.records}/{split.records} [" in end
  listed = {"list"} if source_format in BYTES_LISTED else set()
  assert {end.partition(":")[0] for end in ends} == {*manifest.splits, "verify", *listed}
  assert all(": 100%|" in end for end in ends)
  monkeypatch.setattr(sys, "stderr", Stream(is_terminal=False))
  prepare("hidden")
  assert sys.stderr.getvalue() == ""


DAMAGED = {
  "table": 2,
  "imagenet": 1,
  "class_tars": 2,
  "webdataset": 1,
  "class_folders": 1,
  "python": 1,
}
"""Numbers of damaged things that are seen when `damage` has damaged a source of a format."""


def damage(root, source_format):
  """Damages a source of which only names and headers are read to list it."""
  if source_format == "table":
    for name in ("001.jpg", "004.jpg"):
      (root / name).unlink()
  elif source_format == "python":
    return [
      Example(f"{n}.jpg", n % 3, root / f"{n:02d}.jpg" if n else root / "none.jpg")
      for n in range(18)
    ]
  elif source_format == "class_folders":
    (root / "ant" / "0000.JPEG").unlink()
    (root / "ant" / "0000.JPEG").symlink_to("nowhere")
  elif source_format == "class_tars":
    path = root / f"{miniatures.WORDNET_IDS[0]}.tar"
    miniatures.write_tar(path, miniatures.class_members(0, 6) + miniatures.class_members(0, 2))
  else:
    name = {"imagenet": "ILSVRC2012_img_val.tar", "webdataset": "train-000000.tar"}[source_format]
    # Only the end mark is lost.
    path = root / name
    members = path.read_bytes().rstrip(b"\0")
    path.write_bytes(members + bytes(-len(members) % 512))
  return root


@pytest.mark.parametrize("source_format", DAMAGED)
def test_damage_that_is_seen_when_listing_is_refused_before_anything_is_read(
  source_format, tmp_path
):
  source = damage_source(tmp_path, source_format)
  count = DAMAGED[source_format]
  listed = [image for images in source.splits.values() for image in images]
  damaged = [image for image in listed if image.problem]
  assert len(damaged) == count
  with pytest.raises(UserError) as refused:
    write_dataset(tmp_path / "data", source)
  text = f"image {damaged[0].name} cannot be read ({damaged[0].problem})"
  if count > 1:
    text = f"{count} of {len(listed)} images cannot be used: {text}"
  assert str(refused.value).startswith(text)
  assert str(refused.value).endswith(
    ": add --skip_bad_images to leave out all such images, or correct the source"
  )
  # Nothing was written, so a corrected source may take the same folder.
  assert not list((tmp_path / "data").iterdir())
  text = describe_source(source)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert manifest.skipped_images == tuple(sorted(image.name for image in damaged))
  counted = 0
  for split, images in source.splits.items():
    known = sum(bool(image.problem) for image in images)
    counted += len(images) - known
    assert f"\n  {split}: {manifest.splits[split].records} image" in text
    assert (f"\nnot counted: {known} image" in text) == bool(known) or known == 0
    assert manifest.splits[split].records == len(images) - known
  classes = re.findall(r"class \d+, .*: ([\d +]+) images", text)
  assert sum(map(int, " ".join(classes).replace("+", "").split())) == counted


def damage_source(tmp_path, source_format):
  root = tmp_path / "source"
  SOURCES[source_format](root)
  damaged = damage(root, source_format)
  return read_source((lambda: damaged) if source_format == "python" else damaged, 0.3)
