"""An unfinished data set is continued to the same bytes, whatever became of it meanwhile."""

import collections
import fcntl
import json
import subprocess
import sys

import pytest

from nfnet.errors import InUseError, UserError
from tests.repository import ROOT
from tests.train.data import image_files
from train.data import dataset_writer
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source
from train.data.preparation import progress


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_command_continues_after_a_death_before_any_write(every, tmp_path):
  module = "tests.train.data.preparation.kill_everywhere"
  completed = subprocess.run(
    [sys.executable, "-m", module, tmp_path, str(every)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert completed.returncode == 0, completed.stderr
  ends = [json.loads(line) for line in completed.stdout.splitlines()]
  events = collections.Counter(event for kind, event, *_ in ends if kind == "kill")
  # Plan, 3 record files, 3 notes, lists of images in two splits and of repeated ones, manifest; the
  # last entry is the run that was not killed.
  least = {"os.rename": 10, "record": 6, "sync": 15, "os.remove": 6}
  if every == 1:
    assert all(events[event] >= count for event, count in least.items())
    assert (events["os.rename"], events["record"]) == (10, 6)
  assert sum(events.values()) > sum(least.values()) // every
  assert events[""] == 1
  for kind, event, code, message, is_same in ends:
    assert is_same, (kind, event, message)
    # A run that was killed after the plan had been removed was finished.
    assert code == 0 or "already holds a finished data set" in message, (kind, event, message)


class StoppedError(Exception):
  """Stands for a kill; Python cleans up, but the data set's code has no part in it."""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
  """Begins a data set of four record files, and stops before the manifest is written.

  Returns the folder, the function that gives the same command again, and the files it has to write.
  """
  source = image_files.write_class_folders(tmp_path / "source", 8)

  def prepare(out=tmp_path / "data", **options):
    options = {"files_per_split": 2, **options}
    return write_dataset(out, read_source(source, 0.3), **options)

  def stop(*unused_arguments):
    raise StoppedError

  prepare(tmp_path / "whole")
  with monkeypatch.context() as patch:
    patch.setattr(dataset_writer, "save_manifest", stop)
    with pytest.raises(StoppedError):
      prepare()
  return tmp_path / "data", prepare, image_files.file_hashes(tmp_path / "whole")


FILE = "train-00001-of-00002.array_record"
DAMAGE = {
  "empty": lambda content: b"",
  "cut": lambda content: content[: len(content) // 2],
  "zeros": lambda content: bytes(len(content)),
  "other text": lambda content: b'{"shard": 3}',
  "a list": lambda content: b"[]",
  "not UTF-8": lambda content: b"\xff\xfe",
  "nested": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize(
  ("file", "kind"),
  [
    *((f"{FILE}.json", kind) for kind in DAMAGE),
    *(("plan.json", kind) for kind in DAMAGE if kind != "other text"),
  ],
)
def test_damaged_progress_is_made_again(stopped, file, kind):
  out, prepare, expected = stopped
  path = out / "partial" / file
  path.write_bytes(DAMAGE[kind](path.read_bytes()))
  prepare()
  assert image_files.file_hashes(out) == expected


FIELDS = {
  "digest of another plan": ("plan_sha256", "0"),
  "no digests": ("pixel_digests", ""),
  "digests that are not digits": ("pixel_digests", "x"),
  "no sides": ("sides", "00"),
  "skipped images that are none": ("skipped", None),
  "another record file": ("shard", {"file": "../x", "records": 1, "size_bytes": 1, "sha256": ""}),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_note_that_does_not_fit_counts_as_absent(stopped, kind):
  out, prepare, expected = stopped
  path = out / "partial" / f"{FILE}.json"
  field, value = FIELDS[kind]
  path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
  prepare()
  assert image_files.file_hashes(out) == expected


@pytest.mark.parametrize("kind", ["absent", "cut"])
def test_a_damaged_record_file_is_written_again(stopped, kind):
  out, prepare, expected = stopped
  content = (out / FILE).read_bytes()
  (out / FILE).unlink()
  if kind == "cut":
    (out / FILE).write_bytes(content[:-1])
  prepare()
  assert image_files.file_hashes(out) == expected


def test_a_record_file_whose_bytes_have_changed_is_written_by_the_second_command(stopped):
  out, prepare, expected = stopped
  content = bytearray((out / FILE).read_bytes())
  content[1000] ^= 1
  (out / FILE).write_bytes(content)
  with pytest.raises(UserError, match=f"{FILE} has SHA-256 .*; the same command writes this file"):
    prepare()
  prepare()
  assert image_files.file_hashes(out) == expected


def test_the_beginning_of_another_data_set_is_refused_even_without_its_plan(stopped):
  out, prepare, _ = stopped
  (out / "partial" / "plan.json").write_bytes(b"")
  with pytest.raises(UserError, match="beginning of a data set of another source or other opt"):
    prepare(seed=1)


def test_foreign_files_are_left_alone(stopped):
  out, prepare, expected = stopped
  (out / "partial" / "mine.txt").write_text("mine")
  prepare()
  (out / "partial" / "mine.txt").unlink()
  assert image_files.file_hashes(out) == expected


def test_what_a_system_keeps_in_the_folder_is_no_foreign_file(stopped, tmp_path):
  out, prepare, expected = stopped
  (tmp_path / "disk" / "lost+found").mkdir(parents=True)
  (tmp_path / "disk" / ".DS_Store").touch()
  prepare(tmp_path / "disk")
  for name in (".DS_Store", ".nfs0001", "partial/.DS_Store"):
    (out / name).touch()
  prepare()
  assert (out / ".DS_Store").exists()
  for name in (".DS_Store", ".nfs0001", "partial/.DS_Store"):
    (out / name).unlink()
  assert image_files.file_hashes(out) == expected


def test_a_folder_that_is_only_named_partial_is_foreign(stopped, tmp_path):
  _, prepare, _ = stopped
  mine = tmp_path / "other" / "partial" / "mine.txt"
  mine.parent.mkdir(parents=True)
  mine.write_text("mine")
  with pytest.raises(UserError, match=r"partial holds other files, such as mine\.txt"):
    prepare(tmp_path / "other")
  assert mine.read_text() == "mine"


def test_two_processes_do_not_write_one_data_set(stopped):
  out, prepare, expected = stopped
  with (out / "partial" / "lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(InUseError, match="another process is writing"):
      prepare()
  prepare()
  assert image_files.file_hashes(out) == expected


def test_a_lock_on_a_file_that_is_gone_does_not_count(stopped, monkeypatch):
  out, prepare, expected = stopped

  def lock_too_late(descriptor):
    (out / "partial" / "lock").unlink()
    return True

  with monkeypatch.context() as patch:
    patch.setattr(progress, "try_lock", lock_too_late)
    with pytest.raises(InUseError, match=r"was writing .*: give the same command again"):
      prepare()
  prepare()
  assert image_files.file_hashes(out) == expected
