import errno
import fcntl
import os

import pytest

from nfnet.system.file_locks import is_same_file, try_lock


@pytest.fixture
def opened(tmp_path):
  """Opens a file of this name twice, as two processes would."""
  path = tmp_path / "lock"
  descriptors = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]
  yield path, *descriptors
  for descriptor in descriptors:
    os.close(descriptor)


def test_a_file_is_locked_until_it_is_closed(opened):
  path, first, second = opened
  third = os.open(path, os.O_RDWR)
  assert try_lock(third) is True
  assert try_lock(first) is False
  os.close(third)
  assert try_lock(first) is True
  assert try_lock(second) is False


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_told_apart(number, opened, monkeypatch):
  def fail(*unused_arguments):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", fail)
  assert try_lock(opened[1]) is None


def test_a_file_system_that_fails_is_an_error(opened, monkeypatch):
  def fail(*unused_arguments):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(fcntl, "flock", fail)
  with pytest.raises(OSError, match="Input/output error"):
    try_lock(opened[1])


@pytest.mark.parametrize("how", ["as it was", "renamed", "removed", "replaced", "folder removed"])
def test_the_name_of_a_file_may_have_gone_to_another(how, opened, tmp_path):
  path, descriptor, _ = opened
  match how:
    case "renamed":
      path.rename(tmp_path / "other")
    case "removed":
      path.unlink()
    case "replaced":
      (tmp_path / "new").write_text("")
      (tmp_path / "new").replace(path)
    case "folder removed":
      path = tmp_path / "absent" / path.name
  assert is_same_file(descriptor, path) == (how == "as it was")
