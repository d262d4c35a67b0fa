"""Guards the writing to the folder of a run, and explains its errors."""

import contextlib
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
