import re
import tempfile

import pytest

from nfnet.buckets.bucket_path import BucketPath
from nfnet.buckets.temporary_copies import temporary_copies
from nfnet.errors import UserError


@pytest.fixture(autouse=True)
def temporary_files(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  yield
  assert not list(tmp_path.iterdir())


def test_copies_keep_their_paths_and_are_removed(gcs):
  for name in ("a", "b/c", "d"):
    gcs.put(f"folder/{name}", name.encode())
  with temporary_copies(BucketPath(gcs.url) / "folder", ["a", "b/c"]) as place:
    assert {
      str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()
    } == {"a": b"a", "b/c": b"b/c"}


def test_what_cannot_be_read_is_one_line(gcs):
  with (
    pytest.raises(
      UserError, match=f"^{gcs.url}/a cannot be read: there is no such object; look at its name"
    ),
    temporary_copies(BucketPath(gcs.url), ["a"]),
  ):
    pass


def test_a_full_disk_is_one_line(gcs, monkeypatch):
  gcs.put("a", b"1")
  monkeypatch.setattr(tempfile, "tempdir", "/proc")
  with (
    pytest.raises(UserError, match=re.escape(f"no room for a copy of {gcs.url} in /proc")),
    temporary_copies(BucketPath(gcs.url), ["a"]),
  ):
    pass
