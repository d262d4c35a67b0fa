import os

import pytest

from nfnet.system.durable_files import write_durably
from tests.file_modes import group_umask, modes_beside_group_umask


def leave_a_rest(path):
  path.write_text("a rest of a killed process")


def link_to_another_file(path):
  path.symlink_to(path.with_name("another"))


def link_to_itself(path):
  path.symlink_to(path)


@pytest.mark.parametrize("leave", [leave_a_rest, os.mkfifo, link_to_another_file, link_to_itself])
def test_what_has_the_name_of_the_unfinished_file_is_replaced(leave, tmp_path):
  other, path = tmp_path / "another", tmp_path / "run.json"
  other.write_text("somebody else's")
  path.write_text("old")
  leave(tmp_path / "run.tmp")
  write_durably(path, "new")
  assert path.read_text() == "new"
  assert other.read_text() == "somebody else's"
  assert sorted(tmp_path.iterdir()) == [other, path]


def test_a_folder_of_the_name_of_the_unfinished_file_leaves_the_old_file(tmp_path):
  path = tmp_path / "run.json"
  path.write_text("old")
  (tmp_path / "run.tmp" / "precious").mkdir(parents=True)
  with pytest.raises(OSError, match=r"run\.tmp"):
    write_durably(path, "new")
  assert path.read_text() == "old"
  assert (tmp_path / "run.tmp" / "precious").is_dir()


def test_a_file_that_takes_the_place_of_another_has_the_mode_of_a_new_one(tmp_path):
  path = tmp_path / "folder" / "run.json"
  with group_umask():
    path.parent.mkdir()
    path.write_text("old")
    path.chmod(0o600)
    write_durably(path, "new")
  assert modes_beside_group_umask(path.parent) == {}
