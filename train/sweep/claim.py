"""Claims: a worker takes a trial, shows that it is alive, and gives the trial its next state.

A claim is the rename of the trial's entry to `running/NAME@WORKER`, which is atomic: of two workers
that claim the same trial, one finds the entry gone. The entry then has the worker's heartbeat
(`train.run.leases.heartbeat`), so that others know that it is alive (`train.sweep.dead_workers`).
"""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from train.run.leases.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from train.sweep.folder import RUNNING, Entry, SweepFolder


def claim_trial(
  folder: SweepFolder, entry: Entry, worker: str, *, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> "Claim | None":
  """Takes a trial that is waiting or whose worker is dead.

  Args:
    folder: folder of the sweep.
    entry: entry of the trial.
    worker: name of the claiming worker, from `worker_name`.
    heartbeat_seconds: time between two signs of life.

  Returns:
    The claim; None if another worker was quicker.

  Raises:
    UserError: the folder cannot be written.
  """
  target = folder.path / RUNNING / f"{entry.name}@{worker}"
  with folder.writing():
    try:
      os.rename(entry.path, target)
    except FileNotFoundError:
      # If an NFS server's answer is lost, the client repeats the rename, which then fails although
      # it was done. No other worker creates a file of this name, so its existence tells.
      if not target.exists():
        if not target.parent.is_dir():
          raise
        return None
  return Claim(folder, entry.name, target, heartbeat_seconds)


class Claim:
  """A trial that this worker runs; as a context manager it shows that the worker is alive.

  Attributes:
    name: name of the trial.
  """

  def __init__(self, folder: SweepFolder, name: str, path: pathlib.Path, heartbeat_seconds: float):
    """Prepares the claim without touching the folder.

    Args:
      folder: folder of the sweep.
      name: name of the trial.
      path: path of its entry.
      heartbeat_seconds: time between two signs of life.
    """
    self.name = name
    self._folder = folder
    self._path = path
    self._heartbeat = Heartbeat(path, interval_seconds=heartbeat_seconds)

  def is_lost(self, silent_seconds_max: float) -> bool:
    """Returns whether another worker has the trial, or may soon have it.

    Args:
      silent_seconds_max: time after which others consider a worker dead. The trial counts as lost
        after half of it without a successful sign of life.
    """
    return self._heartbeat.is_gone() or self._heartbeat.silent_seconds() > silent_seconds_max / 2

  def read(self) -> dict[str, Any]:
    """Returns the content of the entry; empty if another worker has the trial by now."""
    return Entry(name=self.name, state=RUNNING, worker=None, path=self._path).read()

  def write(self, content: Mapping[str, Any]) -> None:
    """Writes the content of the entry, unless another worker has the trial by now."""
    text = json.dumps(dict(content), indent=1) + "\n"
    with self._folder.writing(), contextlib.suppress(FileNotFoundError):
      self._overwrite(text)

  def move(self, state: str, content: Mapping[str, Any]) -> None:
    """Moves the trial to another state, unless another worker has it by now.

    Args:
      state: one of `train.sweep.folder.STATES`.
      content: content that the entry then has.
    """
    self.write(content)
    target = self._folder.path / state / self.name
    with self._folder.writing():
      try:
        os.rename(self._path, target)
      except FileNotFoundError:
        # The trial would be run again and again if it could never leave its state.
        if not target.parent.is_dir():
          raise

  def __enter__(self) -> "Claim":
    self._heartbeat.__enter__()
    return self

  def __exit__(self, *unused_exception) -> None:
    self._heartbeat.__exit__()

  def _overwrite(self, text: str) -> None:
    """Replaces the content of the entry if it exists; mode r+ creates none."""
    with self._path.open("r+", encoding="utf-8") as file:
      file.truncate()
      file.write(text)
      file.flush()
      os.fsync(file.fileno())


def worker_name() -> str:
  """Returns a name unique to this process: host, process id, and start time in Unix seconds."""
  host = socket.gethostname().replace("@", "_").replace("/", "_")
  return f"{host}.{os.getpid()}.{int(time.time())}"
