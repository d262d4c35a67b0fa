"""The folder in which a run keeps its books: the workdir, or for one in a bucket a folder here.

Books are appended to, renamed and rewritten in part, which objects of a bucket cannot be. So each
process of a run in a bucket has a folder of this machine for those that it writes: it begins with
what the bucket has of them, and whole files are uploaded when they have changed, before each
checkpoint, every `UPLOAD_SECONDS`, and at the end.

So a checkpoint is never newer in the bucket than the records of the steps before it. Records of
later steps may be lost with the machine, as the steps are, which are done again.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator

import jax
from absl import logging

from nfnet.buckets.bucket_path import BucketPath
from nfnet.buckets.daemon_threads import map_unordered
from nfnet.buckets.temporary_copies import temporary_copies
from nfnet.buckets.verified_copies import cache_folder
from nfnet.errors import UserError
from nfnet.system.paths import as_path, is_in_bucket
from nfnet.weights.checkpoint_identity import CHECKPOINTS_FOLDER, RUN_FILE
from train.run.checkpoints.damage import DAMAGED_FOLDER as DAMAGED_CHECKPOINTS_FOLDER
from train.run.leases import held
from train.run.records.bookkeeping import DAMAGED_FOLDER, report_unwritable
from train.run.records.id_log import IDS_FOLDER
from train.run.records.tensorboard import TENSORBOARD_FOLDER

UPLOAD_SECONDS = 60.0
"""Time between two uploads, after which the bucket shows how a run is going."""

_FILES_AT_ONCE = 8
# Of these, a run reads nothing that an earlier start has written.
_NOT_NEEDED = (CHECKPOINTS_FOLDER, DAMAGED_CHECKPOINTS_FOLDER, TENSORBOARD_FOLDER, "plots")


class Books:
  """The folder for the records of one process.

  Attributes:
    folder: path of the folder on this machine.
  """

  def __init__(self, folder: str):
    self.folder = folder

  def upload(self) -> None:
    """Brings the bucket up to date, if there is one; to be called before a checkpoint is saved."""


class _BooksInBucket(Books):
  """The folder on this machine, and its copy in the bucket."""

  def __init__(self, workdir: BucketPath, folder: pathlib.Path):
    super().__init__(str(folder))
    self._workdir = workdir
    self._uploaded: dict[str, tuple[int, int]] = {}
    # The thread that uploads regularly may be under way with older files.
    self._lock = threading.Lock()
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._upload_regularly, name="uploads", daemon=True)

  def start(self) -> None:
    """Notes that the bucket has what is in the folder now, and begins to upload regularly."""
    self._uploaded = dict(self._files())
    self._thread.start()

  def upload(self) -> None:
    """Writes the files that have changed to the bucket.

    What cannot be written is reported, and tried again the next time.

    Raises:
      UserError: the workdir is no longer this run's.
    """
    with self._lock:
      try:
        held.check_lease(self.folder)
      except OSError as error:
        report_unwritable(pathlib.Path(self.folder), held.LEASE_FILE, error)
        return
      changed = {n: state for n, state in self._files() if self._uploaded.get(n) != state}
      for _ in map_unordered(self._write, changed.items(), _FILES_AT_ONCE):
        pass

  def stop(self) -> bool:
    """Uploads what is left, and returns whether the bucket has everything."""
    self._stopped.set()
    self._thread.join()
    self.upload()
    return dict(self._files()) == self._uploaded

  def _write(self, file: tuple[str, tuple[int, int]]) -> None:
    name, state = file
    try:
      (self._workdir / name).write_bytes(pathlib.Path(self.folder, name).read_bytes())
      self._uploaded[name] = state
    except FileNotFoundError:
      # A file that another one has replaced.
      return
    except OSError as error:
      report_unwritable(pathlib.Path(self.folder), name, error)

  def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the name of each file, and length and time by which a change is noticed."""
    for place, _, names in os.walk(self.folder):
      for name in names:
        path = pathlib.Path(place, name)
        with contextlib.suppress(FileNotFoundError):
          state = path.stat()
          if path.suffix != ".tmp":
            yield (
              path.relative_to(self.folder).as_posix(),
              (state.st_size, state.st_mtime_ns),
            )

  def _upload_regularly(self) -> None:
    while not self._stopped.wait(UPLOAD_SECONDS):
      # The main thread's next write will raise the error too.
      with contextlib.suppress(UserError):
        self.upload()


@contextlib.contextmanager
def books_of(workdir: str) -> Iterator[Books]:
  """Yields the folder for the records of this process, under the lease on the workdir.

  Args:
    workdir: folder of the run, here or in a bucket.

  Raises:
    UserError: the bucket cannot be read, or the folder cannot be written.
  """
  if not is_in_bucket(workdir):
    yield Books(workdir)
    return
  process = jax.process_index()
  place = cache_folder() / "workdirs" / hashlib.sha256(workdir.encode()).hexdigest()[:32]
  folder = place / str(process)
  path = as_path(workdir)
  try:
    # An earlier start may have been killed. The bucket has what its checkpoints need.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [name for name in path.names() if _is_needed(name, process)]
    with temporary_copies(path, names) as copy:
      shutil.copytree(copy, folder, dirs_exist_ok=True)
  except OSError as error:
    raise UserError(f"workdir {workdir!r} cannot be read: {error.strerror or error}") from error
  held.hold_with(folder, lambda: held.check_lease(workdir))
  books = _BooksInBucket(path, folder)
  books.start()
  try:
    yield books
  finally:
    try:
      if books.stop():
        shutil.rmtree(folder, ignore_errors=True)
        # Unless another process of this machine is in it.
        with contextlib.suppress(OSError):
          place.rmdir()
      else:
        logging.warning("%s lacks the newest records; they are in %s", workdir, folder)
    finally:
      held.release(folder)


@contextlib.contextmanager
def books_to_read(workdir: str) -> Iterator[str]:
  """Yields a folder with the records of a run: the workdir, or copies of those in a bucket.

  Args:
    workdir: folder of the run, here or in a bucket.

  Raises:
    UserError: the bucket cannot be read.
  """
  if not is_in_bucket(workdir):
    yield workdir
    return
  path = as_path(workdir)
  try:
    names = [name for name in path.names() if name.partition("/")[0] not in _NOT_NEEDED]
  except OSError as error:
    raise UserError(f"workdir {workdir!r} cannot be read: {error.strerror}") from error
  if not names:
    raise UserError(f"workdir {workdir!r} is not a folder; give the workdir of a run")
  with temporary_copies(path, names) as copy:
    yield str(copy)


def _is_needed(name: str, process: int) -> bool:
  """Returns whether a process has to have what an earlier start has written into a file."""
  top, _, inner = name.removeprefix(f"{DAMAGED_FOLDER}/").partition("/")
  if top == IDS_FOLDER and ".bin" in inner:
    return inner.startswith(f"{process:05}.bin")
  return not process and top not in (*_NOT_NEEDED, held.LEASE_FILE, RUN_FILE)
