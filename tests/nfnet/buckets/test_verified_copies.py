import fcntl
import hashlib
import re
import shutil
import threading
import time

import pytest

from nfnet.buckets import objects, verified_copies
from nfnet.buckets.verified_copies import ExpectedFile, copy_files, folder_of
from nfnet.errors import UserError
from tests.file_modes import group_umask, modes_beside_group_umask

CONTENTS = {"a": b"0123456789" * 10, "b": b"abc", "empty": b""}


@pytest.fixture
def folder(gcs, tmp_path, monkeypatch):
  """The cache's folder for one in a bucket; large objects are read in pieces of 30 bytes."""
  monkeypatch.setenv("NFNETS_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(objects, "READ_BYTES", 30)
  monkeypatch.setattr(verified_copies, "_POLL_SECONDS", 0.01)
  for name, content in CONTENTS.items():
    gcs.put(f"data/{name}", content)
  gcs.put("data/index.json", b"{}")
  return folder_of(f"{gcs.url}/data", "index.json")


def expected(name):
  content = CONTENTS[name]
  return ExpectedFile(
    name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
  )


def copy(gcs, folder, *names):
  copy_files(f"{gcs.url}/data", [expected(name) for name in names or CONTENTS], folder)


def requests(gcs):
  return [one for one in gcs.storage.requests if f"/b/{gcs.name}/" in one]


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_the_files_asked_for_are_copied_and_only_once(gcs, folder, capsys):
  copy(gcs, folder, "a")
  assert capsys.readouterr().err == f"copied 1 of 1 file of {gcs.url}/data to {folder}\n"
  assert contents(folder) == {"a": CONTENTS["a"], "index.json": b"{}"}
  copy(gcs, folder)
  assert contents(folder) == {**CONTENTS, "index.json": b"{}"}
  before = len(requests(gcs))
  copy(gcs, folder)
  assert len(requests(gcs)) == before


def test_copies_have_the_modes_that_the_umask_leaves(gcs, folder, tmp_path, monkeypatch):
  monkeypatch.setenv("NFNETS_CACHE", str(tmp_path / "new" / "cache"))
  with group_umask():
    other = folder_of(f"{gcs.url}/data", "index.json")
    copy(gcs, other)
  assert contents(other) == {**CONTENTS, "index.json": b"{}"}
  assert modes_beside_group_umask(tmp_path / "new") == {}


def test_another_index_has_another_folder(gcs, folder):
  assert folder_of(f"{gcs.url}/data", "index.json") == folder
  gcs.put("data/index.json", b"[]")
  other = folder_of(f"{gcs.url}/data", "index.json")
  assert other != folder
  assert contents(other) == {"index.json": b"[]"}


def test_an_interrupted_copy_goes_on_where_it_stopped(gcs, folder, monkeypatch):
  (folder / "a.part").write_bytes(CONTENTS["a"][:60])
  ranges = []
  monkeypatch.setattr(gcs.storage, "saw_range", ranges.append)
  copy(gcs, folder, "a")
  assert contents(folder)["a"] == CONTENTS["a"]
  assert not (folder / "a.part").exists()
  assert ranges
  assert all(int(re.search(r"\d+", one)[0]) >= 60 for one in ranges)


@pytest.mark.parametrize("part", [b"x" * 60, CONTENTS["a"] + b"x", b"x" * 100])
def test_a_damaged_beginning_is_copied_again(gcs, folder, part):
  (folder / "a.part").write_bytes(part)
  copy(gcs, folder, "a")
  assert contents(folder)["a"] == CONTENTS["a"]


@pytest.mark.parametrize("content", [b"9" * 100, b"short", b"long" * 100])
def test_another_object_than_expected_is_one_line(gcs, folder, content):
  gcs.put("data/a", content)
  with pytest.raises(UserError, match=f"^{gcs.url}/data/a has .* upload it again$"):
    copy(gcs, folder, "a")
  assert "a" not in contents(folder)
  gcs.put("data/a", CONTENTS["a"])
  copy(gcs, folder, "a")
  assert contents(folder)["a"] == CONTENTS["a"]


def test_a_missing_object_is_one_line(gcs, folder):
  gcs.remove("data/b")
  with pytest.raises(UserError, match=f"^{gcs.url}/data/b cannot be read: there is no such object"):
    copy(gcs, folder)
  with pytest.raises(UserError, match=r"index\.jso is not there"):
    folder_of(f"{gcs.url}/data", "index.jso")


def test_a_disk_without_room_is_one_line_before_anything_is_copied(gcs, folder, monkeypatch):
  (folder / "a.part").write_bytes(b"1" * 60)
  usage = shutil.disk_usage(folder)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=42))
  with pytest.raises(UserError, match=r"GB are free: make room, or name .* in NFNETS_CACHE"):
    copy(gcs, folder)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=43))
  copy(gcs, folder)


def test_a_cache_that_cannot_be_written_is_one_line(gcs, folder, monkeypatch):
  (folder / "a.part").mkdir()
  with pytest.raises(UserError, match=r"the cache .* cannot be written: Is a directory"):
    copy(gcs, folder)
  monkeypatch.setenv("NFNETS_CACHE", "/dev/null/cache")
  with pytest.raises(UserError, match="/dev/null/cache cannot be written"):
    folder_of(f"{gcs.url}/data", "index.json")
  monkeypatch.setenv("NFNETS_CACHE", "gs://bucket/cache")
  with pytest.raises(UserError, match=r"^NFNETS_CACHE=gs://bucket/cache is in a bucket, but"):
    folder_of(f"{gcs.url}/data", "index.json")


def test_a_file_that_another_process_is_copying_is_waited_for(gcs, folder):
  unfinished = folder / "a.part"
  with unfinished.open("wb") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    before = len(requests(gcs))
    thread = threading.Thread(target=copy, args=(gcs, folder, "a"))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    other.write(CONTENTS["a"])
    other.flush()
    unfinished.rename(folder / "a")
  thread.join(10)
  assert not thread.is_alive()
  assert len(requests(gcs)) == before
  assert contents(folder)["a"] == CONTENTS["a"]
