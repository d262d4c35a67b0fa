import errno
import os

import pytest

from nfnet.foreign_files.regular_files import open_regular_to_write, read_regular_file
from tests.file_modes import group_umask, modes_beside_group_umask


def test_a_file_within_the_bound_is_read_whole(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"12345")
  assert read_regular_file(path, 5) == b"12345"
  with pytest.raises(OSError, match="has more than 4 bytes") as caught:
    read_regular_file(path, 4)
  assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_has_no_end_is_not_read(tmp_path, make):
  make(tmp_path / "file")
  with pytest.raises(OSError, match="not a regular file"):
    read_regular_file(tmp_path / "file", 5)


def test_a_folder_is_not_a_file(tmp_path):
  with pytest.raises(IsADirectoryError):
    read_regular_file(tmp_path, 5)


@pytest.mark.parametrize("mode", ["ab", "wb"])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, mode):
  folder = tmp_path / "folder"
  with group_umask():
    folder.mkdir()
    open_regular_to_write(folder / "file", mode).close()
  assert modes_beside_group_umask(folder) == {}
