import errno
import os

import pytest

from nfnet.foreign_files.regular_files import read_regular_file


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
