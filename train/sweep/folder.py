"""The folder that the workers of a sweep share: it holds the state of each trial, and its worker.

    FOLDER/plan.json                   settings that all trials have in common
    FOLDER/waiting/NAME                one entry for each trial, in one of these four folders
    FOLDER/running/NAME@WORKER
    FOLDER/done/NAME                   JSON: the result
    FOLDER/failed/NAME                 JSON: the reason, and where the log is
    FOLDER/trials/NAME/trial.json      definition of the trial
    FOLDER/trials/NAME/log.txt         output of its training
    FOLDER/trials/NAME/run             its workdir
    FOLDER/results.csv                 results of all trials that are done

An entry changes its state by `os.rename`, which is atomic on a disk and on NFS: of two workers that
rename the same entry, one finds it gone. There is no server and no lock. A trial is added by
renaming a whole folder to `trials/NAME`, which fails if that exists, so that each is added once.
(Buckets mounted as folders do not qualify, because they rename by copying.)

`train.sweep.claim` takes a trial, and `train.sweep.dead_workers` finds trials whose worker has
died. To leave out a waiting trial, delete its entry.

What is not of a sweep, or is damaged, makes nothing else unusable: `SweepFolder.ignored` names what
the last listing left out, and why. A damaged definition is written anew where the plan has it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from absl import logging

from nfnet.errors import UserError
from nfnet.foreign_files.json_text import read_json_object
from nfnet.foreign_files.regular_files import open_regular_to_write
from nfnet.system.durable_files import write_durably, write_synced
from nfnet.system.paths import local_path, obstacle
from train.sweep.trial import Trial, trial_from_json

WAITING, RUNNING, FAILED, DONE = STATES = ("waiting", "running", "failed", "done")

_PLAN_FILE = "plan.json"
_TRIALS = "trials"
_TRIAL_FILE = "trial.json"
_NEW_ENTRY = "entry"
_LISTINGS_MAX = 4
_IGNORED_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """The file that holds the state of a trial.

  Attributes:
    name: name of the trial.
    state: one of `STATES`.
    worker: worker that runs the trial; None unless it is running.
    path: path of the file.
  """

  name: str
  state: str
  worker: str | None
  path: pathlib.Path

  def read(self) -> dict[str, Any]:
    """Returns the entry's content; empty if the entry has moved, is being written or is damaged."""
    try:
      return read_json_object(self.path)
    except (OSError, ValueError):
      return {}


class SweepFolder:
  """A sweep folder.

  Attributes:
    path: absolute path, because workdirs of trials and names of logs in messages begin with it.
    ignored: what the last call of `entries` left out, by path in the folder, with the reason.
  """

  def __init__(self, path: str | os.PathLike):
    """Prepares the object without looking at the folder.

    Args:
      path: path of the folder, which need not exist.

    Raises:
      UserError: it is not a path of this machine.
    """
    self.path = pathlib.Path(local_path("--folder", os.fspath(path))).absolute()
    self.ignored: dict[str, str] = {}
    self._trials: dict[str, Trial] = {}

  def create(self, fixed: Mapping[str, Any]) -> None:
    """Creates the folder unless it exists.

    Args:
      fixed: settings that all its trials have in common, as JSON values.

    Raises:
      UserError: the folder cannot be written, or was created with other settings.
    """
    plan = self.path / _PLAN_FILE
    with self.writing():
      for name in (*STATES, _TRIALS):
        (self.path / name).mkdir(parents=True, exist_ok=True)
      unfinished = _unfinished(plan)
      write_synced(unfinished, json.dumps(dict(fixed), indent=1) + "\n")
      # Unlike a rename, a link never replaces a file that another worker was quicker to write.
      with contextlib.suppress(FileExistsError):
        os.link(unfinished, plan)
      unfinished.unlink()
    try:
      before = read_json_object(plan)
    except OSError as error:
      raise UserError(f"{str(plan)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
      raise UserError(f"{str(plan)!r} is damaged: {error}; give another --folder") from error
    for name, value in fixed.items():
      if before.get(name) != value:
        raise UserError(
          f"sweep folder {str(self.path)!r}: {name} was {before.get(name)!r} and is now {value!r}; "
          "give another --folder"
        )

  def check(self) -> None:
    """Raises UserError unless this is the folder of a sweep."""
    if not (self.path / _PLAN_FILE).is_file():
      raise UserError(
        f"sweep folder {str(self.path)!r}: there is no sweep; begin one with --plan=FILE"
      )

  def trial_folder(self, name: str) -> pathlib.Path:
    """Returns the folder of a trial's log and workdir."""
    return self.path / _TRIALS / name

  def log(self, name: str) -> pathlib.Path:
    """Returns the path of the output of a trial's training."""
    return self.trial_folder(name) / "log.txt"

  def workdir(self, name: str) -> pathlib.Path:
    """Returns the workdir of a trial's training."""
    return self.trial_folder(name) / "run"

  def trial(self, name: str) -> Trial:
    """Returns the definition of a trial.

    Raises:
      UserError: the definition cannot be read.
    """
    if problem := self._definition_problem(name):
      path = self.trial_folder(name) / _TRIAL_FILE
      raise UserError(f"trial file {str(path)!r} {problem}")
    return self._trials[name]

  def names(self) -> set[str]:
    """Returns the names of all trials that were ever added and have a definition."""
    names = set()
    for name in (entry.name for entry in _list(self.path / _TRIALS)):
      if problem := self._definition_problem(name):
        self.ignored[f"{_TRIALS}/{name}"] = f"{_TRIAL_FILE} {problem}"
      else:
        names.add(name)
    return names

  def ignored_text(self) -> str:
    """Returns a line on what the last call of `entries` left out; empty if that is nothing."""
    if not self.ignored:
      return ""
    named = [
      f"{name!r} ({reason})" for name, reason in sorted(self.ignored.items())[:_IGNORED_NAMED]
    ]
    if (more := len(self.ignored) - len(named)) > 0:
      named.append(f"and {more} more")
    return f"ignored {len(self.ignored)} in sweep folder {str(self.path)!r}: {', '.join(named)}"

  def add(self, trial: Trial) -> bool:
    """Adds a trial, which then waits; any number of workers may add the same one.

    Args:
      trial: definition of the trial.

    Returns:
      Whether the trial is new.
    """
    target = self.trial_folder(trial.name)
    text = json.dumps(dataclasses.asdict(trial), indent=1) + "\n"
    # A link that leads nowhere has the place of the trial too.
    if os.path.lexists(target):
      if self._definition_problem(trial.name):
        self._define_again(trial.name, text)
      return False
    with self.writing():
      unfinished = _unfinished(target)
      unfinished.mkdir()
      write_synced(unfinished / _TRIAL_FILE, text)
      write_synced(unfinished / _NEW_ENTRY, "{}\n")
      try:
        os.rename(unfinished, target)
      except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        if os.path.lexists(target):
          return False
        raise
    self._release(trial.name)
    return True

  def entries(self) -> dict[str, Entry]:
    """Returns the entry of each trial, by name.

    A trial whose worker died while adding it gets its entry here.

    Raises:
      UserError: the folder cannot be listed.
    """
    entries: dict[str, Entry] = {}
    for _ in range(_LISTINGS_MAX):
      self.ignored = {}
      # In the order in which a trial passes through its states, so that a trial that advances
      # meanwhile is not missed. A trial that is given back may be missed, and is looked for again.
      for state in STATES:
        for entry in _files(self.path / state, self.ignored):
          name, separator, worker = entry.name.partition("@")
          if bool(separator) == (state == RUNNING):
            entries[name] = Entry(
              name=name, state=state, worker=worker or None, path=pathlib.Path(entry.path)
            )
          else:
            self.ignored[f"{state}/{entry.name}"] = "not the name of a trial"
      # Listed after the entries, so that it has all of their trials.
      names = self.names()
      for name in entries.keys() - names:
        entry = entries.pop(name)
        if f"{_TRIALS}/{name}" not in self.ignored:
          self.ignored[f"{entry.state}/{entry.path.name}"] = "no trial has this name"
      missing = names - entries.keys()
      for name in missing:
        self._release(name)
      if not missing:
        break
    return entries

  def retry_failed(self) -> list[str]:
    """Makes failed trials wait again, except those that diverged, which would diverge again.

    Returns:
      The names of these trials.
    """
    again = []
    for entry in self.entries().values():
      if entry.state == FAILED and not entry.read().get("diverged"):
        with self.writing(), contextlib.suppress(FileNotFoundError):
          os.rename(entry.path, self.path / WAITING / entry.name)
          again.append(entry.name)
    return again

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """Turns errors of writing into the folder into a UserError.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
      yield
    except OSError as error:
      if path := obstacle(error):
        raise UserError(
          f"sweep folder {str(self.path)!r} cannot be written: {str(path)!r} is in the way "
          f"({error.strerror}); move that away and run the same command again"
        ) from error
      raise UserError(
        f"sweep folder {str(self.path)!r} cannot be written: {error.strerror}; "
        "make it writable and run the same command again"
      ) from error

  def _definition_problem(self, name: str) -> str:
    """Reads the definition of a trial; returns what is wrong with it, or an empty text."""
    if name in self._trials:
      return ""
    try:
      trial = trial_from_json(read_json_object(self.trial_folder(name) / _TRIAL_FILE))
    except OSError as error:
      return f"cannot be read: {error.strerror}"
    except ValueError as error:
      return str(error)
    if trial.name != name:
      return "is of another trial"
    self._trials[name] = trial
    return ""

  def _define_again(self, name: str, text: str) -> None:
    """Replaces a damaged definition where that is possible; elsewhere the trial stays ignored."""
    with contextlib.suppress(OSError):
      write_whole(self.trial_folder(name) / _TRIAL_FILE, text)
      if name not in self.entries():
        write_synced(self.trial_folder(name) / _NEW_ENTRY, "{}\n")
        self._release(name)

  def _release(self, name: str) -> None:
    """Creates the entry of a trial that was added, unless it has one."""
    # A folder in the place of the entry is ignored, and with it the trial.
    with self.writing(), contextlib.suppress(FileNotFoundError, IsADirectoryError):
      os.rename(self.trial_folder(name) / _NEW_ENTRY, self.path / WAITING / name)


def open_log(path: pathlib.Path) -> BinaryIO:
  """Opens a log to append to it; the null device if something in its place cannot be a log.

  Output is never state, so what is in the way of one log does not keep its trial from being run.

  Raises:
    OSError: a file cannot be created or written there.
  """
  # Without a buffer: what could not be written would be tried again, and raise, when it is closed.
  if os.path.isfile(path) or not os.path.lexists(path):
    with contextlib.suppress(PermissionError):
      return open_regular_to_write(path, "ab", buffering=0)
  # A folder, a pipe, a link to itself.
  logging.warning("log %s cannot be written; its output is lost", path)
  return open(os.devnull, "ab", buffering=0)


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file atomically: readers see either the previous content or all of the new one."""
  write_durably(path, text, unfinished=_unfinished(path))


def _unfinished(path: pathlib.Path) -> pathlib.Path:
  """Returns a path beside `path` that no other process uses and that `_list` leaves out."""
  return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _list(folder: pathlib.Path) -> list[os.DirEntry[str]]:
  """Returns the finished files and folders in a folder; none if it does not exist.

  Raises:
    UserError: the folder cannot be listed.
  """
  try:
    with os.scandir(folder) as found:
      return [entry for entry in found if not entry.name.startswith(".")]
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(f"sweep folder {str(folder)!r} cannot be listed: {error.strerror}") from error


def _files(folder: pathlib.Path, ignored: dict[str, str]) -> Iterator[os.DirEntry[str]]:
  """Yields the finished files in a folder; notes what else is in it."""
  for entry in _list(folder):
    try:
      is_file, reason = entry.is_file(), "not a file"
    except OSError as error:
      is_file, reason = False, f"cannot be looked at: {error.strerror}"
    if is_file:
      yield entry
    elif os.path.lexists(entry.path):
      ignored[f"{folder.name}/{entry.name}"] = reason
