"""Links, special files and what systems leave in folders."""

import os
import socket

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data.dataset_writer import write_dataset
from train.data.image_sources import describe_source, read_source


@pytest.fixture
def source(tmp_path):
  """Writes 60 images of three classes."""
  return image_files.write_class_folders(tmp_path / "source", 20)


def names(source):
  return {image.name for images in source.splits.values() for image in images}


LEFT_OUT = (
  *("ant/.ipynb_checkpoints/000-checkpoint.png", "bee/.@__thumb/0.jpg", "bee/@eaDir/0.jpg"),
  *("__MACOSX/ant/._0000.png", "ant/.AppleDouble/0.jpg", "ant/._0.jpg", "ant/Thumbs.db"),
  *("$RECYCLE.BIN/0.jpg", "lost+found/0.jpg", "@Recycle/0.jpg", ".git/0.jpg", ".cache/ant/0.jpg"),
)


def test_what_systems_keep_for_themselves_is_left_out_and_said(source):
  expected = names(read_source(source, 0.3))
  for name in LEFT_OUT:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(image_files.JPEG)
  found = read_source(source, 0.3)
  assert names(found) == expected
  assert found.class_names == image_files.CLASS_NAMES
  assert f"left out: {len(LEFT_OUT)} hidden or system items" in describe_source(found)


LINKS = {
  "to its folder": [("ant/loop", ".")],
  "to the folder above": [("ant/up", "..")],
  "twice to the folder above": [("ant/up", ".."), ("bee/up", "..")],
  "to another class": [("ant/more", "../bee")],
  "of a class to another": [("dog", "ant")],
  "of a split to another": [("../val", "train")],
  "from outside and back": [("ant/out", "../../outside"), ("../outside/in", "../source")],
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_folder_that_would_be_read_twice_is_refused(tmp_path, kind):
  source = tmp_path / "source"
  root = source
  (tmp_path / "outside").mkdir()
  if kind == "of a split to another":
    root = tmp_path / "splits"
    source = root / "train"
  image_files.write_class_folders(source, 1)
  for name, target in LINKS[kind]:
    (source / name).symlink_to(target)
  with pytest.raises(UserError, match=r"are one folder.*remove the link"):
    read_source(root, 0.3)


def test_links_to_folders_and_files_elsewhere_are_followed(tmp_path, source):
  image_files.write_class_folders(tmp_path / "elsewhere", 5, class_names=("dog",))
  (source / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
  (source / "ant" / "link.png").symlink_to(source / "bee" / "0001.png")
  assert len(names(read_source(source, 0.3))) == 66


def write_socket(path):
  with socket.socket(socket.AF_UNIX) as opened:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
      # The path of a socket must be short.
      opened.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
      os.close(folder)


UNREADABLE = {
  "FIFO": (os.mkfifo, "it is a FIFO"),
  "socket": (write_socket, "it is a socket"),
  "endless device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
  "terminal": (lambda path: path.symlink_to("/dev/tty"), "it is a device"),
  "dangling link": (lambda path: path.symlink_to("nothing"), "a link that leads nowhere"),
  "link to itself": (lambda path: path.symlink_to(path.name), "a link that leads nowhere"),
  "sparse": (lambda path: (path.touch(), os.truncate(path, 2**40)), "has more than"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_only_regular_files_are_opened(tmp_path, source, kind):
  write, message = UNREADABLE[kind]
  write(source / "ant" / "bad.jpg")
  with pytest.raises(
    UserError, match=rf"image ant/bad\.jpg cannot be (read|decoded) \(.*{message}"
  ):
    write_dataset(tmp_path / "data", read_source(source, 0.3))
  manifest = write_dataset(tmp_path / "more", read_source(source, 0.3), skip_bad_images=True)
  assert manifest.skipped_images == ("ant/bad.jpg",)
  assert sum(split.records for split in manifest.splits.values()) == 60


def test_a_file_that_becomes_a_fifo_after_the_listing_is_not_waited_for(tmp_path, source):
  listed = read_source(source, 0.3)
  (source / "ant" / "0000.JPEG").unlink()
  os.mkfifo(source / "ant" / "0000.JPEG")
  with pytest.raises(UserError, match=r"0000\.JPEG cannot be read \(not a regular file\)"):
    write_dataset(tmp_path / "data", listed)


def test_other_special_files_are_ignored(source):
  expected = names(read_source(source, 0.3))
  os.mkfifo(source / "ant" / "fifo")
  os.mkfifo(source / "train-labels-idx1-ubyte")
  (source / "ant" / "readme").symlink_to("nothing")
  found = read_source(source, 0.3)
  assert names(found) == expected
  assert "left out: 1 dangling link: ant/readme" in describe_source(found)


def test_idx_files_that_are_none_are_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "train-images-idx3-ubyte")
  with pytest.raises(UserError, match="cannot be read: not a regular file"):
    read_source(tmp_path)


def test_a_dangling_link_in_place_of_a_class_or_split_is_refused(tmp_path, source):
  image_files.write_class_folders(tmp_path / "splits" / "train", 2)
  (tmp_path / "splits" / "val").symlink_to("/nowhere/val")
  (source / "dog").symlink_to("/nowhere/dog")
  for folder, name in ((source, "dog"), (tmp_path / "splits", "val")):
    with pytest.raises(UserError, match=rf"links that lead nowhere \({name}\)"):
      read_source(folder, 0.3)


def test_the_data_set_may_lie_in_the_source(source):
  expected = names(read_source(source, 0.3))
  (source / "data").mkdir()
  assert names(read_source(source, 0.3, excluded=source / "data")) == expected
  with pytest.raises(UserError, match="are one folder"):
    read_source(source, 0.3, excluded=source / "." / "data" / "..")


def test_names_of_files_that_are_no_text_are_escaped(tmp_path, source):
  for name in (b"caf\xe9.jpg", b"line\nend.jpg", b"\x1b[2J.jpg", b"n" * 251 + b".jpg"):
    path = os.path.join(os.fsencode(source), b"ant", name)
    with open(path, "wb") as file:
      file.write(b"bad" if b"line" in name or b"caf" in name else image_files.JPEG)
  manifest = write_dataset(tmp_path / "data", read_source(source, 0.3), skip_bad_images=True)
  assert manifest.skipped_images == (r"ant/caf\udce9.jpg", r"ant/line\nend.jpg")
  assert sum(split.records for split in manifest.splits.values()) == 62
  with pytest.raises(UserError, match=r"image ant/.*\.jpg cannot be decoded") as caught:
    write_dataset(tmp_path / "strict", read_source(source, 0.3))
  assert str(caught.value).isprintable()


def test_deep_folders_end_in_one_line(tmp_path, source):
  folder = os.open(source / "ant", os.O_RDONLY)
  for _ in range(200):
    os.mkdir("d" * 50, dir_fd=folder)
    inner = os.open("d" * 50, os.O_RDONLY, dir_fd=folder)
    os.close(folder)
    folder = inner
  os.close(folder)
  with pytest.raises(UserError, match="File name too long") as caught:
    read_source(source, 0.3)
  assert len(str(caught.value)) < 2100
