"""Guards the writing to the folder of a run, explains its errors, and clears what is in the way."""

import contextlib
import errno
import pathlib
from collections.abc import Iterator

from nfnet.errors import UserError
from nfnet.system.paths import as_path, obstacle
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
    if path := obstacle(error):
      raise UserError(
        f"workdir {str(workdir)!r} cannot be written: {str(path)!r} is in the way "
        f"({error.strerror}); move that away and run the same command again to resume, or give "
        "another --workdir"
      ) from error
    raise UserError(
      f"workdir {str(workdir)!r} cannot be written: {error.strerror}; "
      "make room and run the same command again to resume, or give another --workdir"
    ) from error


def move_aside(path: pathlib.PurePath, folder: pathlib.PurePath) -> pathlib.PurePath:
  """Moves a file or folder of a run into a folder for such, without replacing anything there.

  Args:
    path: path of the file or folder, here or in a bucket.
    folder: folder in the same workdir; created if needed.

  Returns:
    Its new path: its name in `folder`, or that with the first of `.1`, `.2`, ... that is free. If
    it lies on another file system than the workdir, because a folder of the run is a link, it stays
    in that folder under its name with `.damaged`: what is damaged might not be readable to be
    copied, and other names are left alone.

  Raises:
    OSError: it cannot be moved.
  """
  folder, path = as_path(folder), as_path(path)
  folder.mkdir(parents=True, exist_ok=True)
  try:
    return path.rename(_free(folder / path.name))
  except OSError as error:
    if error.errno != errno.EXDEV:
      raise
  return path.rename(_free(path.with_name(f"{path.name}.damaged")))


def _free(path: pathlib.PurePath) -> pathlib.PurePath:
  """Returns a path at which nothing is: the given one, or that with the first free number."""
  place, count = path, 0
  while place.exists() or place.is_symlink():
    count += 1
    place = path.with_name(f"{path.name}.{count}")
  return place
