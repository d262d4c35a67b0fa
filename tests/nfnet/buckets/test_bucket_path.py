import os

import pytest
from etils import epath

from nfnet.buckets.bucket_path import BucketPath


@pytest.fixture
def folder(gcs):
  return BucketPath(gcs.url) / "folder"


def test_it_is_what_other_libraries_make_of_an_address():
  path = epath.Path("gs://bucket/a/b")
  assert type(path) is BucketPath
  assert str(path) == os.fspath(path) == path.as_posix() == "gs://bucket/a/b"
  assert (path.bucket, path.object_name) == ("bucket", "a/b")
  assert path.parent.parent / "c" == BucketPath("gs://bucket/c")
  assert str(path.relative_to(path.parent)) == "b"
  assert path.absolute() == path
  assert BucketPath("gs://bucket").object_name == ""


def test_files_and_folders(folder):
  assert not folder.exists()
  folder.mkdir(parents=True)
  assert not folder.is_dir()
  (folder / "a/b").write_text("ü")
  (folder / "c").write_bytes(b"1")
  assert (folder / "a/b").read_text() == "ü"
  assert folder.is_dir()
  assert not folder.is_file()
  assert (folder / "c").is_file()
  assert not (folder / "c").is_dir()
  assert list(folder.iterdir()) == [folder / "a", folder / "c"]
  assert list(folder.glob("?")) == [folder / "a", folder / "c"]
  assert list(folder.walk()) == [(folder, ["a"], ["c"]), (folder / "a", [], ["b"])]
  assert (folder / "c").stat().length == 1
  with pytest.raises(OSError, match="not empty"):
    folder.rmdir()
  folder.rmtree()
  assert not folder.exists()
  folder.rmdir()


def test_a_renamed_folder_leaves_nothing_behind(folder):
  (folder / "a/b").write_bytes(b"1")
  (folder / "a/c/d").write_bytes(b"2")
  assert (folder / "a").rename(folder / "z") == folder / "z"
  assert folder.names() == ["z/b", "z/c/d"]
  (folder / "z/b").replace(folder / "z/c/d")
  assert folder.names() == ["z/c/d"]
  assert (folder / "z/c/d").read_bytes() == b"1"
  with pytest.raises(FileNotFoundError):
    folder.joinpath("a").rename(folder / "b")


def test_an_object_is_written_when_its_file_is_closed(folder):
  with (folder / "a").open("wb") as file:
    file.write(b"1")
    assert not (folder / "a").exists()
    file.write(b"2")
  with (folder / "b").open("w") as file:
    file.write("text")
  with (folder / "a").open("rb") as file:
    assert (file.read(1), file.read()) == (b"1", b"2")
  with (folder / "b").open() as file:
    assert file.read() == "text"


def test_what_objects_lack_is_an_error_of_the_system(folder):
  with pytest.raises(OSError, match="mode 'ab'"):
    (folder / "a").open("ab")
  with pytest.raises(FileNotFoundError):
    (folder / "a").open("rb")
  with pytest.raises(FileNotFoundError):
    (folder / "a").unlink()
  (folder / "a").unlink(missing_ok=True)
