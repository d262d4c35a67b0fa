"""The lease on a workdir, which keeps two runs from writing into one folder.

`lease.json` in the workdir names the process that writes there. That this process is alive shows in
two ways:

- it holds the kernel's lock (flock) on the file, which ends with the process however it dies. Other
  processes that see the folder through the same mount of the same machine know at once whether they
  may have it;
- it touches the file every `HEARTBEAT_SECONDS`. Processes elsewhere, for whom the lock may mean
  nothing, take the lease over when the file has not changed for `SILENT_SECONDS_MAX`.

When several processes train together, the first one holds the lease for all of them.
For a bucket, which has neither locks nor times, `train.run.leases.bucket_lease` does it otherwise.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator

from nfnet.errors import UserError
from nfnet.foreign_files.regular_files import open_regular
from nfnet.system.file_locks import is_same_file, try_lock
from nfnet.system.paths import is_in_bucket
from train.run.leases import bucket_lease, held
from train.run.leases.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from train.run.processes import is_first, same_in_all_processes
from train.run.records.workdir import writing_to
from train.run.termination import Terminated

SILENT_SECONDS_MAX = 60.0
"""Time without a sign of life after which a holder on another machine counts as dead."""

_GRACE_SECONDS = 2.0
"""Time for which a holder on this machine may still be about to end."""
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def lease_on(workdir: str | os.PathLike[str]) -> Iterator[None]:
  """Gives a workdir to this run alone while the context lasts.

  All processes of a run enter it together.

  Args:
    workdir: folder of the run, here or in a bucket; created if needed.

  Raises:
    InUseError: another process is writing into the workdir.
    UserError: the workdir cannot be written.
  """
  with contextlib.ExitStack() as opened:
    in_bucket = is_in_bucket(workdir)
    token = 0
    if is_first():
      taken = bucket_lease.taken(str(workdir)) if in_bucket else _taken(pathlib.Path(workdir))
      token = opened.enter_context(taken)
    token = same_in_all_processes(token)
    if not is_first():
      if in_bucket:
        bucket_lease.hold(str(workdir), token)
      else:
        held.hold(workdir, token)
      opened.callback(held.release, workdir)
      _check_is_shared(workdir)
    try:
      yield
    except Terminated:
      # All processes end this way.
      same_in_all_processes(0)
      raise
    # The first process gives the lease back, under which the others may still be writing.
    same_in_all_processes(0)


def _check_is_shared(workdir: str | os.PathLike[str]) -> None:
  """Raises UserError if this process sees another folder than the first one does."""
  try:
    with writing_to(workdir):
      pass
  except UserError as error:
    raise UserError(
      f"workdir {os.fspath(workdir)!r} is not the folder that process 0 writes into; give all "
      "processes one that they share"
    ) from error


@contextlib.contextmanager
def _taken(workdir: pathlib.Path) -> Iterator[int]:
  """Takes the lease, keeps up its heartbeat, and gives it back; yields its token."""
  token = secrets.randbits(63)
  path = workdir.absolute() / held.LEASE_FILE
  is_new = not path.parent.exists()
  with writing_to(workdir):
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path, workdir, token)
  held.hold(workdir, token, descriptor)
  try:
    with Heartbeat(path):
      yield token
  finally:
    held.release(workdir)
    if is_new:
      # Of a run that was refused before it wrote anything; another folder cannot be removed so.
      with contextlib.suppress(OSError):
        path.parent.rmdir()


def _take(path: pathlib.Path, workdir: pathlib.Path, token: int) -> int:
  """Returns the descriptor of the lease's file, which names this process and is locked by it."""
  began_seconds = time.monotonic()
  dead = None
  while True:
    descriptor = _open(path)
    try:
      is_locked, place = try_lock(descriptor), _place(descriptor)
      content = os.pread(descriptor, held.SIZE_BYTES, 0)
      holder = held.read_holder(content)
      # Of such a holder, the lock says whether it is alive.
      is_near = not content or holder.get("place") == place
      if not is_same_file(descriptor, path):
        # Its holder has given it back since it was opened.
        pass
      elif (content in (b"", dead) and is_locked is not False) or (is_near and is_locked):
        _write(descriptor, place, token)
        return descriptor
      elif is_locked is False and content == dead:
        # A file server has kept the lock of a machine that is dead.
        path.unlink()
      elif is_locked is False and is_near:
        if time.monotonic() - began_seconds > _GRACE_SECONDS:
          raise held.in_use(str(workdir), holder)
      elif _falls_silent(path, workdir, holder):
        dead = content
      else:
        raise held.in_use(str(workdir), holder)
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)
    time.sleep(_POLL_SECONDS)


def _open(path: pathlib.Path) -> int:
  """Returns a descriptor of the lease's file, which is created if it is missing."""
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise UserError(f"{path} is not a file; remove it, or give another --workdir")
  return descriptor


def _place(descriptor: int) -> str:
  """Returns what is equal for processes that share the kernel and its mount of the workdir.

  Containers of one machine share the kernel, but each may have mounted a bucket for itself.
  """
  try:
    kernel = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    kernel = socket.gethostname()
  return f"{kernel}:{os.fstat(descriptor).st_dev}"


def _falls_silent(path: pathlib.Path, workdir: pathlib.Path, holder: dict) -> bool:
  """Waits until a holder elsewhere counts as dead; returns False if it shows that it is alive."""
  touched_ns = _last_touched_ns(path)
  silent_seconds = max(0.0, (_server_time_ns(path) - touched_ns) / 1e9)
  if silent_seconds <= SILENT_SECONDS_MAX:
    print(
      f"workdir {str(workdir)!r} was in use {silent_seconds:.0f} s ago by {held.describe(holder)}; "
      f"waiting up to {SILENT_SECONDS_MAX:.0f} s for another sign of life",
      file=sys.stderr,
      flush=True,
    )
  began_seconds = time.monotonic() - silent_seconds
  while time.monotonic() - began_seconds <= SILENT_SECONDS_MAX:
    time.sleep(HEARTBEAT_SECONDS / 2)
    if _last_touched_ns(path) != touched_ns:
      return False
  return True


def _last_touched_ns(path: pathlib.Path) -> int:
  """Returns when a file was last touched; 0 if it is gone."""
  try:
    # Opening a file makes NFS look at its current attributes.
    with open_regular(path) as file:
      return os.fstat(file.fileno()).st_mtime_ns
  except FileNotFoundError:
    return 0


def _server_time_ns(path: pathlib.Path) -> int:
  """Returns the time by the clock that stamps files beside `path`."""
  with tempfile.TemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
    return os.fstat(file.fileno()).st_mtime_ns


def _write(descriptor: int, place: str, token: int) -> None:
  holder = {
    "process": os.getpid(),
    "host": socket.gethostname(),
    "since": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    "place": place,
    "token": token,
  }
  os.pwrite(descriptor, json.dumps(holder).ljust(held.SIZE_BYTES - 1).encode() + b"\n", 0)
  os.ftruncate(descriptor, held.SIZE_BYTES)
  os.fsync(descriptor)
