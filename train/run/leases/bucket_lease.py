"""The lease on a workdir in a bucket, where nothing can be locked and no file has a time.

The object `lease.json` names the process that writes there. Google Cloud Storage can be told to
write an object only if it still has a given generation, so of two processes one gets the lease. The
holder writes it again every `HEARTBEAT_SECONDS`. A process that wants it takes it over when it has
seen no new generation for `SILENT_SECONDS_MAX`, or at once if the holder was a process of this
machine that is gone.

A holder that has not confirmed its lease for `CONFIRMED_SECONDS_MAX`, half of that time, reads it
before it writes anything. So a holder that was cut off or stopped does not go on writing. What was
sent to the bucket before it was stopped may still arrive there.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from nfnet.buckets import objects
from nfnet.errors import UserError
from train.run.leases import held

HEARTBEAT_SECONDS = 10.0
"""Time between two signs of life. An object may be written once a second."""
SILENT_SECONDS_MAX = 60.0
"""Time without a sign of life after which a holder on another machine counts as dead."""
CONFIRMED_SECONDS_MAX = 30.0
"""Time for which a holder takes for granted that the lease is still its own."""

_POLL_SECONDS = 2.0


class _Lease:
  """A lease under which this process writes."""

  def __init__(self, workdir: str, token: int):
    self._workdir = workdir
    self._token = token
    self._confirmed_seconds = -CONFIRMED_SECONDS_MAX
    self._lost: UserError | None = None

  def confirm(self) -> None:
    """Notes that the lease was this run's a moment ago."""
    self._confirmed_seconds = time.monotonic()

  def check(self) -> None:
    """Raises UserError if the lease is lost; reads it if that has not been confirmed lately."""
    if self._lost is None and time.monotonic() - self._confirmed_seconds >= CONFIRMED_SECONDS_MAX:
      self.read()
    if self._lost is not None:
      raise self._lost

  def read(self) -> bytes | None:
    """Reads the lease; returns its generation, or None if it is lost."""
    content, generation = _read(self._workdir)
    holder = held.read_holder(content)
    if holder.get("token") == self._token:
      self.confirm()
      return generation
    self._lost = held.lost_to(self._workdir, holder)
    return None


def hold(workdir: str, token: int) -> None:
  """Lets this process write under a lease that the first process has taken, until it is released.

  Args:
    workdir: address of the run's folder.
    token: number in the lease.
  """
  held.hold_with(workdir, _Lease(workdir, token).check)


@contextlib.contextmanager
def taken(workdir: str) -> Iterator[int]:
  """Takes the lease, keeps up its heartbeat, and gives it back; yields its token.

  Args:
    workdir: address of the run's folder.

  Raises:
    InUseError: another process is writing there.
    UserError: the bucket cannot be written.
  """
  token = secrets.randbits(63)
  content = json.dumps(
    {
      "process": os.getpid(),
      "host": socket.gethostname(),
      "since": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
      "place": _place(),
      "began": _began(os.getpid()),
      "token": token,
    }
  ).encode()
  try:
    generation = _take(workdir, content)
  except OSError as error:
    raise UserError(f"workdir {workdir!r} cannot be written: {error.strerror}") from error
  lease = _Lease(workdir, token)
  lease.confirm()
  heartbeat = _Heartbeat(workdir, content, generation, lease)
  held.hold_with(workdir, lease.check, heartbeat.give_back)
  heartbeat.start()
  try:
    yield token
  finally:
    held.release(workdir)


class _Heartbeat(threading.Thread):
  """Writes the lease again and again, until it is given back or lost."""

  def __init__(self, workdir: str, content: bytes, generation: bytes, lease: _Lease):
    super().__init__(name="heartbeat", daemon=True)
    self._workdir = workdir
    self._content = content
    self._generation: bytes | None = generation
    self._lease = lease
    self._stopped = threading.Event()

  def run(self) -> None:
    """Writes the lease regularly; a bucket that cannot be reached is tried again."""
    while self._generation is not None and not self._stopped.wait(HEARTBEAT_SECONDS):
      with contextlib.suppress(OSError):
        self._beat()

  def _beat(self) -> None:
    began_seconds = time.monotonic()
    try:
      self._generation = _write(self._workdir, self._content, self._generation)
    except FileExistsError:
      # A write whose answer was lost has been repeated, or the lease is another process's.
      self._generation = self._lease.read()
      return
    # It may have taken long.
    if time.monotonic() - began_seconds < HEARTBEAT_SECONDS:
      self._lease.confirm()

  def give_back(self) -> None:
    """Stops and deletes the lease, if it is still this process's."""
    self._stopped.set()
    # A bucket that does not answer must not keep the process from ending.
    self.join(HEARTBEAT_SECONDS)
    if self._generation is not None and not self.is_alive():
      with contextlib.suppress(OSError):
        objects.delete(*_object(self._workdir), if_generation=self._generation)


def _take(workdir: str, content: bytes) -> bytes:
  """Writes the lease as soon as no living process has it; returns its generation."""
  while True:
    found, generation = _read(workdir)
    holder = held.read_holder(found)
    is_free = generation == objects.NO_OBJECT or _is_gone(holder)
    if not is_free and not _falls_silent(workdir, holder, generation):
      raise held.in_use(workdir, holder)
    # Another process may be quicker.
    with contextlib.suppress(FileExistsError):
      return _write(workdir, content, generation)


def _falls_silent(workdir: str, holder: dict[str, Any], generation: bytes) -> bool:
  """Waits until a holder counts as dead; returns False if it shows that it is alive."""
  print(
    f"workdir {workdir!r} is in use by {held.describe(holder)}, or was until it died; waiting "
    f"up to {SILENT_SECONDS_MAX:.0f} s for a sign of life",
    file=sys.stderr,
    flush=True,
  )
  began_seconds = time.monotonic()
  while time.monotonic() - began_seconds <= SILENT_SECONDS_MAX:
    time.sleep(min(_POLL_SECONDS, SILENT_SECONDS_MAX))
    if _read(workdir)[1] != generation:
      # Gone, if it has ended just now.
      return not _read(workdir)[0]
  return True


def _object(workdir: str) -> tuple[str, str]:
  return objects.split(f"{workdir}/{held.LEASE_FILE}")


def _read(workdir: str) -> tuple[bytes, bytes]:
  """Returns the lease's content and generation; nothing if there is none."""
  try:
    return objects.read(*_object(workdir))
  except FileNotFoundError:
    return b"", objects.NO_OBJECT


def _write(workdir: str, content: bytes, generation: bytes | None) -> bytes:
  return objects.write(*_object(workdir), content, if_generation=generation)


def _place() -> str:
  """Returns what is equal for processes that see each other's numbers: kernel and namespace."""
  try:
    kernel = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{kernel}:{os.stat('/proc/self/ns/pid').st_ino}"
  except OSError:
    return secrets.token_hex()


def _began(process: int) -> str | None:
  """Returns when a process began, in ticks since the kernel did; None if it is gone."""
  try:
    # The second field is a name in parentheses, which may hold spaces.
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
  except (OSError, IndexError):
    return None


def _is_gone(holder: dict[str, Any]) -> bool:
  """Returns whether a holder was a process of this machine that does not run any more."""
  process = holder.get("process")
  if holder.get("place") != _place() or type(process) is not int:
    return False
  return _began(process) != holder.get("began")
