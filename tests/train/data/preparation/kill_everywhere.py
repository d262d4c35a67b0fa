"""Kills the writing of a data set before each of its writes, and gives the same command again.

    python -m tests.train.data.preparation.kill_everywhere FOLDER EVERY

A write is whatever changes a folder or file: opening a file for writing, a record, a rename, a
removal, a sync. For each, a forked process ends itself there; then another one goes on without
being killed. With EVERY above 1, it does so for each EVERY-th write only. All of it is done twice:
as if the process had been killed, and as if the power had failed, which empties files that were not
synced and undoes renames in folders that were not synced. Each line of the output is a JSON list:
the kind of death, the write before which it came, what the second run ended with, and whether its
files are those of a run that nothing disturbed.
"""

import json
import os
import pathlib
import sys

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data import dataset_writer
from train.data.image_sources import read_source

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
_KILLED = 99


class _Death:
  """Ends this process before its n-th write below a folder."""

  def __init__(self, folder: pathlib.Path, number: int, kind: str):
    self._folder = folder
    self._number = number
    self._kind = kind
    self._synced_inodes: set[int] = set()
    self._renames: list[tuple[str, str]] = []

  def arm(self) -> None:
    """Begins to count."""
    sys.addaudithook(self._see)
    encode = dataset_writer.record_files.encode_record

    def counted_encode(record):
      self._count("record")
      return encode(record)

    dataset_writer.record_files.encode_record = counted_encode
    os.fsync = self._see_sync

  def _see(self, event: str, arguments: tuple) -> None:
    if event not in _EVENTS or not str(arguments[0]).startswith(str(self._folder)):
      return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
      return
    self._count(event)
    if event == "os.rename":
      self._renames.append((str(arguments[0]), str(arguments[1])))

  def _see_sync(self, descriptor: int) -> None:
    self._count("sync")
    self._synced_inodes.add(os.fstat(descriptor).st_ino)
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    self._renames = [pair for pair in self._renames if os.path.dirname(pair[1]) != path]

  def _count(self, event: str) -> None:
    self._number -= 1
    if self._number:
      return
    if self._kind == "power failure":
      for path in self._folder.rglob("*"):
        if path.is_file() and path.stat().st_ino not in self._synced_inodes:
          os.truncate(path, path.stat().st_size // 2)
      for before, after in reversed(self._renames):
        if os.path.exists(after):
          os.rename(after, before)
    os.write(3, event.encode())
    os._exit(_KILLED)


def _run(source: pathlib.Path, out: pathlib.Path, death: _Death | None) -> tuple[int, str]:
  """Writes the data set in a forked process; returns its exit code and its message."""
  reading, writing = os.pipe()
  child = os.fork()
  if not child:
    os.dup2(writing, 3)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
      listed = read_source(source)
      if death:
        death.arm()
      dataset_writer.write_dataset(out, listed, files_per_split=2, skip_bad_images=True)
    except UserError as error:
      os.write(3, str(error).encode())
      os._exit(1)
    finally:
      # An exception must not go on in the copy of the loop below.
      os._exit(0 if sys.exception() is None else 2)
  os.close(writing)
  _, status = os.waitpid(child, 0)
  with os.fdopen(reading, "rb") as pipe:
    return os.waitstatus_to_exitcode(status), pipe.read().decode()


def main(folder: pathlib.Path, every: int) -> None:
  """Kills everywhere and prints what came of it."""
  # The processes' pipes come as descriptor 3.
  os.dup2(os.open(os.devnull, os.O_RDONLY), 3)
  # Nothing really fails here, and thousands of syncs take half a minute.
  os.fsync = lambda descriptor: None
  source = folder / "source"
  small = {"height": 6, "width": 6}
  image_files.write_class_folders(source / "train", 2, ("ant", "bee"), **small)
  # Its one image is one of those above.
  image_files.write_class_folders(source / "val", 1, ("ant",), **small)
  path = source / "train" / "bee" / "0000.JPEG"
  (source / "train" / "ant" / "copy.jpg").write_bytes(path.read_bytes())
  (source / "train" / "ant" / "bad.jpg").write_bytes(b"bad")
  code, message = _run(source, folder / "whole", None)
  assert code == 0, message
  expected = image_files.file_hashes(folder / "whole")
  for kind in ("kill", "power failure"):
    number, code = 1 - every, _KILLED
    while code == _KILLED:
      number += every
      out = folder / f"{kind} {number}"
      code, event = _run(source, out, _Death(out, number, kind))
      second_code, message = _run(source, out, None) if code == _KILLED else (code, event)
      is_same = image_files.file_hashes(out) == expected
      print(json.dumps([kind, event, second_code, message, is_same]))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
