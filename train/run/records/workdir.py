"""Guards the writing to the folder of a run, explains its errors, and clears what is in the way."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from nfnet.errors import UserError
from train.run.leases.held import check_lease


@contextlib.contextmanager
def writing_to(workdir: str | pathlib.Path) -> Iterator[None]:
  """Turns errors of the file system into a `UserError`, around code that writes to a workdir.

  Args:
    workdir: folder of the run, named in the message.

  Raises:
    UserError: the folder cannot be written, the disk is full, or the folder is no longer this
      run's (`train.run.leases.held`).
  """
  try:
    check_lease(workdir)
    yield
  except OSError as error:
    raise UserError(
      f"workdir {str(workdir)!r} cannot be written: {error.strerror}; "
      "make room and run the same command again to resume, or give another --workdir"
    ) from error


def move_aside(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Moves a file or folder of a run into a folder for such, without replacing anything there.

  Args:
    path: path of the file or folder.
    folder: folder in the same workdir; created if needed.

  Returns:
    Its new path: its name in `folder`, or that with the first of `.1`, `.2`, ... that is free.

  Raises:
    OSError: it cannot be moved.
  """
  folder.mkdir(parents=True, exist_ok=True)
  place, count = folder / path.name, 0
  while os.path.lexists(place):
    count += 1
    place = folder / f"{path.name}.{count}"
  return path.rename(place)
