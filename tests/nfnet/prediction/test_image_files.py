import os

import pytest

from nfnet.errors import UserError
from nfnet.prediction.image_files import list_images


def touch(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_folders_are_their_images_and_files_are_themselves(tmp_path):
  images = [tmp_path / "top" / name for name in ("a.JPG", "b.png", "z/c.jpeg", "z/d/e.webp")]
  touch(*images, tmp_path / "top" / "notes.txt", tmp_path / "top" / ".hidden.png")
  touch(tmp_path / "top" / ".git" / "x.png", tmp_path / "odd name")
  found = list_images([str(tmp_path / "odd name"), str(tmp_path / "top")])
  assert found == [str(tmp_path / "odd name"), *map(str, images)]


def test_links_are_followed_once(tmp_path):
  touch(tmp_path / "top" / "a.png", tmp_path / "other" / "b.png")
  (tmp_path / "top" / "above").symlink_to(tmp_path / "top")
  (tmp_path / "top" / "link").symlink_to(tmp_path / "other")
  found = list_images([str(tmp_path / "top")])
  assert [os.path.relpath(path, tmp_path / "top") for path in found] == ["a.png", "link/b.png"]


def test_a_list_names_files_and_folders(tmp_path, monkeypatch):
  odd = os.fsdecode(b"caf\xe9.png")
  touch(tmp_path / "a" / "b.png", tmp_path / odd)
  (tmp_path / "list").write_bytes(b"a\r\n\n  \ncaf\xe9.png\nmissing.jpg")
  monkeypatch.chdir(tmp_path)
  assert list_images(["x.jpg"], "list") == ["x.jpg", "a/b.png", odd, "missing.jpg"]


def test_what_names_no_image_is_an_error(tmp_path):
  touch(tmp_path / "empty" / "notes.txt", tmp_path / "list")
  with pytest.raises(UserError, match=r"empty' has no image \(\.jpg, "):
    list_images([str(tmp_path / "empty")])
  with pytest.raises(UserError, match="names no image"):
    list_images([], str(tmp_path / "list"))
  (tmp_path / "list").write_text("a.png\ngs://bucket/a.png\n")
  for named in ((["gs://bucket/a.png"], None), ([], str(tmp_path / "list"))):
    with pytest.raises(UserError, match=r"^image=gs://bucket/a\.png is in .*: mount the bucket"):
      list_images(*named)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
  (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa.jpg\nb.jpg")
  assert list_images([], str(tmp_path / "list")) == ["a.jpg", "b.jpg"]
