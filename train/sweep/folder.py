"""The folder that the workers of a sweep share: which trial is in which state, and who runs it.

    FOLDER/plan.json                   what all trials have in common
    FOLDER/waiting/NAME                one entry a trial, in one of these four folders
    FOLDER/running/NAME@WORKER
    FOLDER/done/NAME                   JSON: the result
    FOLDER/failed/NAME                 JSON: the reason, and where the log is
    FOLDER/trials/NAME/trial.json      what is run
    FOLDER/trials/NAME/log.txt         what it printed
    FOLDER/trials/NAME/run             its workdir
    FOLDER/results.csv                 of all that are done

An entry changes its state by `os.rename`, which is atomic on a disk and on NFS: of two workers that
rename the same entry, one finds it gone. There is no server and no lock. A trial is added by the
rename of a whole folder to `trials/NAME`, which fails where there is one, so that it is added once.
(Buckets that are mounted as folders rename by copying; they will not do.)

A worker that runs a trial touches its entry every `BEAT_SECONDS`. An entry whose time has not
changed for long, by the clock of a worker that watches, is that of a dead worker and is renamed by
whoever sees it first; the clocks of machines need not agree.

To leave out a trial that waits, delete its entry.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nfnet.errors import UserError
from train.sweep.trial import Trial

WAITING, RUNNING, FAILED, DONE = STATES = ("waiting", "running", "failed", "done")
BEAT_SECONDS = 2.0
"""Between two signs of life. Clients of NFS may see them a minute late."""

_PLAN_FILE = "plan.json"
_TRIALS = "trials"
_TRIAL_FILE = "trial.json"
_NEW_ENTRY = "entry"
_LISTINGS_MAX = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """Where a trial is.

  Attributes:
    name: of the trial.
    state: one of `STATES`.
    worker: that runs it, or none.
    path: of the entry.
  """

  name: str
  state: str
  worker: str | None
  path: pathlib.Path

  def read(self) -> dict[str, Any]:
    """Its content; empty if it has moved on or is being written."""
    try:
      return json.loads(self.path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
      return {}


class SweepFolder:
  """A sweep folder.

  Attributes:
    path: absolute, because trials are told their workdir and people where the logs are.
  """

  def __init__(self, path: str | os.PathLike):
    """Looks at nothing yet.

    Raises:
      UserError: it is an address.
    """
    if "://" in os.fspath(path):
      raise UserError(f"--folder={path}: not a folder; mount a share and give its path")
    self.path = pathlib.Path(path).absolute()
    self._trials: dict[str, Trial] = {}

  def create(self, fixed: Mapping[str, Any]) -> None:
    """Makes the folder unless it is there.

    Args:
      fixed: what all its trials have in common, JSON values.

    Raises:
      UserError: it cannot be written, or was made with something else.
    """
    plan = self.path / _PLAN_FILE
    with self.writing():
      for name in (*STATES, _TRIALS):
        (self.path / name).mkdir(parents=True, exist_ok=True)
      unfinished = _unfinished(plan)
      unfinished.write_text(json.dumps(dict(fixed), indent=1) + "\n", encoding="utf-8")
      # Unlike a rename, a link keeps what another worker was quicker to write.
      with contextlib.suppress(FileExistsError):
        os.link(unfinished, plan)
      unfinished.unlink()
      text = plan.read_text(encoding="utf-8")
    try:
      before = dict(json.loads(text))
    except (ValueError, TypeError) as error:
      raise UserError(f"{str(plan)!r} is damaged: {error}; give another --folder") from error
    for name, value in fixed.items():
      if before.get(name) != value:
        raise UserError(
          f"sweep folder {str(self.path)!r}: {name} was {before.get(name)!r} and is now {value!r}; "
          "give another --folder"
        )

  def check(self) -> None:
    """Raises UserError unless it is the folder of a sweep."""
    if not (self.path / _PLAN_FILE).is_file():
      raise UserError(f"sweep folder {str(self.path)!r}: there is no sweep; --plan=FILE begins one")

  def trial_folder(self, name: str) -> pathlib.Path:
    """Of the trial's log and workdir."""
    return self.path / _TRIALS / name

  def log(self, name: str) -> pathlib.Path:
    """What the trial's training has printed."""
    return self.trial_folder(name) / "log.txt"

  def workdir(self, name: str) -> pathlib.Path:
    """Of the trial's training."""
    return self.trial_folder(name) / "run"

  def trial(self, name: str) -> Trial:
    """What is run.

    Raises:
      UserError: it cannot be read.
    """
    if name not in self._trials:
      path = self.trial_folder(name) / _TRIAL_FILE
      try:
        self._trials[name] = Trial(**json.loads(path.read_text(encoding="utf-8")))
      except (OSError, ValueError, TypeError) as error:
        raise UserError(f"trial file {str(path)!r} cannot be read: {error}") from error
    return self._trials[name]

  def names(self) -> set[str]:
    """Of all trials that were ever added."""
    return set(_list(self.path / _TRIALS))

  def add(self, trial: Trial) -> bool:
    """Adds a trial that waits; whether it is new. Any number of workers may add the same."""
    target = self.trial_folder(trial.name)
    if target.exists():
      return False
    with self.writing():
      unfinished = _unfinished(target)
      unfinished.mkdir()
      text = json.dumps(dataclasses.asdict(trial), indent=1) + "\n"
      (unfinished / _TRIAL_FILE).write_text(text, encoding="utf-8")
      (unfinished / _NEW_ENTRY).write_text("{}\n", encoding="utf-8")
      try:
        os.rename(unfinished, target)
      except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        if target.exists():
          return False
        raise
    self._release(trial.name)
    return True

  def entries(self) -> dict[str, Entry]:
    """Where each trial is, by name. Lets those wait that were added by a worker that died then."""
    entries: dict[str, Entry] = {}
    for _ in range(_LISTINGS_MAX):
      # In the order in which a trial goes through them, so that none slips through forwards. One
      # that is given back may, and is looked for again.
      for state in STATES:
        for file_name in _list(self.path / state):
          name, _, worker = file_name.partition("@")
          entries[name] = Entry(
            name=name, state=state, worker=worker or None, path=self.path / state / file_name
          )
      missing = self.names() - set(entries)
      for name in missing:
        self._release(name)
      if not missing:
        break
    return entries

  def claim(self, entry: Entry, worker: str) -> "Claim | None":
    """Takes a trial that waits, or whose worker is dead; None if another worker was quicker.

    Args:
      entry: of the trial.
      worker: from `worker_name`.
    """
    target = self.path / RUNNING / f"{entry.name}@{worker}"
    with self.writing():
      try:
        os.rename(entry.path, target)
      except FileNotFoundError:
        # A server's answer may have been lost, and the rename asked for again by the client. Nobody
        # else makes a file of this name.
        if not target.exists():
          return None
    return Claim(self, entry.name, target)

  def retry_failed(self) -> list[str]:
    """Trials that failed wait again, but for those that diverged, which would do so again."""
    again = []
    for entry in self.entries().values():
      if entry.state == FAILED and not entry.read().get("diverged"):
        with self.writing(), contextlib.suppress(FileNotFoundError):
          os.rename(entry.path, self.path / WAITING / entry.name)
          again.append(entry.name)
    return again

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """Around what writes into the folder.

    Raises:
      UserError: it cannot be written.
    """
    try:
      yield
    except OSError as error:
      raise UserError(
        f"sweep folder {str(self.path)!r} cannot be written: {error.strerror}; "
        "mend it and run the same command again"
      ) from error

  def _release(self, name: str) -> None:
    """Lets a trial that was added wait, unless that has been done."""
    with self.writing(), contextlib.suppress(FileNotFoundError):
      os.rename(self.trial_folder(name) / _NEW_ENTRY, self.path / WAITING / name)


class Claim:
  """A trial that this worker runs. Use as a context manager, in which it shows that it lives.

  Attributes:
    name: of the trial.
  """

  def __init__(self, folder: SweepFolder, name: str, path: pathlib.Path):
    self.name = name
    self._folder = folder
    self._path = path
    self._is_gone = threading.Event()
    self._stopped = threading.Event()
    self._beat_seconds = time.monotonic()
    self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

  def is_lost(self, silent_seconds_max: float) -> bool:
    """Whether another worker has the trial, or may soon have it.

    Args:
      silent_seconds_max: after which others take a worker for dead. Half of it without a sign of
        life, where the folder does not answer, is too long already.
    """
    silent_seconds = time.monotonic() - self._beat_seconds
    return self._is_gone.is_set() or silent_seconds > silent_seconds_max / 2

  def read(self) -> dict[str, Any]:
    """What the entry says; empty if it is another worker's by now."""
    return Entry(name=self.name, state=RUNNING, worker=None, path=self._path).read()

  def write(self, content: Mapping[str, Any]) -> None:
    """Says it in the entry, unless that is another worker's by now."""
    text = json.dumps(dict(content), indent=1) + "\n"
    with self._folder.writing(), contextlib.suppress(FileNotFoundError):
      self._overwrite(text)

  def move(self, state: str, content: Mapping[str, Any]) -> None:
    """To another of `STATES`, where it says this; unless it is another worker's by now."""
    self.write(content)
    with self._folder.writing(), contextlib.suppress(FileNotFoundError):
      os.rename(self._path, self._folder.path / state / self.name)

  def __enter__(self) -> "Claim":
    self._thread.start()
    return self

  def __exit__(self, *unused_exception) -> None:
    self._stopped.set()
    self._thread.join()

  def _overwrite(self, text: str) -> None:
    # r+ makes no file where there is none.
    with self._path.open("r+", encoding="utf-8") as file:
      file.truncate()
      file.write(text)
      file.flush()
      os.fsync(file.fileno())

  def _beat(self) -> None:
    while not self._stopped.wait(BEAT_SECONDS):
      try:
        os.utime(self._path)
        self._beat_seconds = time.monotonic()
      except FileNotFoundError:
        self._is_gone.set()
      except OSError:
        # The share does not answer; it may again.
        continue


class SilenceWatch:
  """Notices workers that are dead, by this process's own clock."""

  def __init__(self, silent_seconds_max: float, *, clock: Callable[[], float] = time.monotonic):
    self._silent_seconds_max = silent_seconds_max
    self._clock = clock
    self._seen: dict[pathlib.Path, tuple[int, float]] = {}

  def silent(self, entries: Mapping[str, Entry]) -> list[Entry]:
    """Of running entries, those that were not touched for too long, as seen at all calls so far."""
    now_seconds = self._clock()
    seen, silent = {}, []
    for entry in entries.values():
      if entry.state != RUNNING:
        continue
      try:
        touched_ns = entry.path.stat().st_mtime_ns
      except OSError:
        continue
      before = self._seen.get(entry.path)
      since_seconds = before[1] if before and before[0] == touched_ns else now_seconds
      seen[entry.path] = touched_ns, since_seconds
      if now_seconds - since_seconds > self._silent_seconds_max:
        silent.append(entry)
    self._seen = seen
    return silent


def worker_name() -> str:
  """Of this process, unlike that of any other: host, process, start in Unix seconds."""
  host = socket.gethostname().replace("@", "_").replace("/", "_")
  return f"{host}.{os.getpid()}.{int(time.time())}"


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file so that who looks sees what was there before or the whole of it."""
  unfinished = _unfinished(path)
  unfinished.write_text(text, encoding="utf-8")
  unfinished.replace(path)


def _unfinished(path: pathlib.Path) -> pathlib.Path:
  """A name beside it that nobody else takes and `_list` leaves out."""
  return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _list(folder: pathlib.Path) -> list[str]:
  """Names of what is finished."""
  try:
    return [name for name in os.listdir(folder) if not name.startswith(".")]
  except FileNotFoundError:
    return []
