"""Sets the umask, and looks whether files and folders have the modes that it leaves."""

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator

GROUP_UMASK = 0o027
"""Neither the usual umask nor that of programs that make their files private."""


@contextlib.contextmanager
def group_umask() -> Iterator[None]:
  """Gives new files and folders the modes that `GROUP_UMASK` leaves."""
  before = os.umask(GROUP_UMASK)
  try:
    yield
  finally:
    os.umask(before)


def modes_beside_group_umask(folder: pathlib.Path) -> dict[str, str]:
  """Returns the modes of what a folder holds, by path, where `group_umask` would give others."""
  found = {}
  for path in (folder, *sorted(folder.rglob("*"))):
    mode = path.lstat().st_mode
    made_with = {stat.S_IFDIR: 0o777, stat.S_IFREG: 0o666}.get(stat.S_IFMT(mode))
    if made_with is not None and stat.S_IMODE(mode) != made_with & ~GROUP_UMASK:
      found[str(path.relative_to(folder))] = stat.filemode(mode)
  return found
