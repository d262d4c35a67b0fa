"""Knows the leases that this process writes under, and notices when it has lost one.

`train.run.leases.workdir_lease` and `train.run.leases.bucket_lease` take them. Whatever writes into
a workdir calls `check_lease` first; `train.run.records.workdir.writing_to` does so. A lease is lost
when its file does not hold this run's token, because the workdir was renamed, removed, replaced, or
given to another process.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from nfnet.errors import InUseError, UserError, shortened
from nfnet.foreign_files.json_text import parse_json
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.file_locks import is_same_file
from nfnet.system.paths import is_in_bucket

LEASE_FILE = "lease.json"
SIZE_BYTES = 1024
"""Length to which the file is padded, so that one write replaces all of it."""

# A shared folder that does not answer must not keep a process from ending.
_GIVE_BACK_SECONDS_MAX = 1.0


class _Lease(NamedTuple):
  """A lease under which this process writes.

  Attributes:
    check: raises an error if the lease is lost.
    give_back: gives the lease back if this process has taken it.
  """

  check: Callable[[], None]
  give_back: Callable[[], None]


_leases: dict[str, _Lease] = {}
"""Leases that this process writes under, by the absolute paths of their folders."""


def hold(workdir: str | os.PathLike[str], token: int, descriptor: int | None = None) -> None:
  """Lets this process write into a workdir under a lease, until `release` is called.

  Args:
    workdir: folder of the run.
    token: number in the lease, which all processes of the run know.
    descriptor: descriptor of the lease's file if this process has taken it, or None.
  """
  path = os.path.abspath(workdir)
  hold_with(
    path, functools.partial(_check, path, token), functools.partial(_give_back, path, descriptor)
  )


def hold_with(
  folder: str | os.PathLike[str],
  check: Callable[[], None],
  give_back: Callable[[], None] = lambda: None,
) -> None:
  """Lets this process write into a folder under a lease of another kind, until `release` is called.

  Args:
    folder: a workdir in a bucket, or the folder of this machine whose files go there.
    check: function that raises UserError if the lease is lost.
    give_back: function that gives the lease back.
  """
  _leases[_key(folder)] = _Lease(check, give_back)


def release(folder: str | os.PathLike[str]) -> None:
  """Ends what `hold` has begun, and gives the lease back if this process has taken it."""
  lease = _leases.pop(_key(folder), None)
  if lease is not None:
    lease.give_back()


def _give_back(workdir: str, descriptor: int | None) -> None:
  if descriptor is None:
    return
  file = os.path.join(workdir, LEASE_FILE)
  # The workdir may be another one by now.
  if is_same_file(descriptor, file):
    with contextlib.suppress(OSError):
      os.unlink(file)
  os.close(descriptor)


def _key(folder: str | os.PathLike[str]) -> str:
  return os.fspath(folder) if is_in_bucket(folder) else os.path.abspath(folder)


def end_process(code: int) -> NoReturn:
  """Gives the leases back and ends this process at once, without its exit handlers."""
  thread = threading.Thread(target=lambda: [release(workdir) for workdir in list(_leases)])
  thread.daemon = True
  thread.start()
  thread.join(_GIVE_BACK_SECONDS_MAX)
  os._exit(code)


def check_lease(folder: str | os.PathLike[str]) -> None:
  """Raises an error if this process has lost a lease under which it writes into a folder.

  Args:
    folder: folder that is about to be written to: a workdir, or any folder in one. Nothing is
      checked if no lease is held on it.

  Raises:
    UserError: the workdir was renamed, removed or replaced, or another process has taken it over.
    OSError: the lease cannot be read.
  """
  path = _key(folder)
  for workdir, lease in list(_leases.items()):
    if path == workdir or path.startswith(os.path.join(workdir, "")):
      lease.check()


def _check(workdir: str, token: int) -> None:
  try:
    with open_regular(os.path.join(workdir, LEASE_FILE)) as file:
      holder = read_holder(file.read(SIZE_BYTES))
  except (FileNotFoundError, NotADirectoryError):
    holder = {}
  if holder.get("token") == token:
    return
  if not os.path.isdir(workdir):
    raise lost(workdir, "is gone: it has been renamed or removed")
  raise lost_to(workdir, holder)


def lost_to(workdir: str, holder: dict[str, Any]) -> UserError:
  """Returns the error for a lease whose file names another holder, or makes no sense."""
  if "token" in holder:
    return lost(
      workdir, f"was taken over by {describe(holder)}, to which this process has looked dead"
    )
  return lost(
    workdir, f"has been emptied or replaced by another folder ({LEASE_FILE} is not this run's)"
  )


def lost(workdir: str, what: str) -> UserError:
  """Returns the error for a lost lease.

  Args:
    workdir: folder of the run.
    what: description of what has become of it.
  """
  return UserError(
    f"workdir {workdir!r} {what}; nothing more is written to it; put it back and run the same "
    "command again to resume, or give another --workdir"
  )


def read_holder(content: bytes) -> dict[str, Any]:
  """Returns what a lease's file says about its holder; empty if it makes no sense."""
  try:
    holder = parse_json(content)
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def describe(holder: dict[str, Any]) -> str:
  """Returns the words by which an error message names the holder of a lease."""
  if not holder:
    return "another process"
  # Whoever can write into the folder may have written anything.
  values = (shortened(str(holder.get(name))) for name in ("process", "host", "since"))
  return "process {} on host {} (since {})".format(*values)


def in_use(workdir: str, holder: dict[str, Any]) -> InUseError:
  """Returns the error for a workdir that another process writes into."""
  return InUseError(
    f"workdir {workdir!r} is in use by {describe(holder)}; wait for its end or stop it, or give "
    "another --workdir"
  )
