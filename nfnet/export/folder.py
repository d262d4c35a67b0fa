"""Makes a folder whose description appears last, when all its other files are there."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from nfnet.errors import UserError
from nfnet.system.durable_files import sync

_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def new_folder(out: str, last: str) -> Iterator[pathlib.Path]:
  """Yields a folder inside `out`, whose files move to `out` after the block.

  Nothing outside `out` is written, and no folder is renamed: `out` may be a link, a volume of a
  container, or in a mounted bucket. If the block fails, nothing is left.

  Args:
    out: path that is not there yet, or an empty folder.
    last: name of the file that moves after all others, so that these are there where it is.

  Raises:
    UserError: the folder holds something, or cannot be written.
  """
  path = pathlib.Path(os.path.realpath(out))
  unfinished = path / _UNFINISHED
  _refuse_content(path)
  is_new = not path.exists()
  try:
    # Of an export that was killed.
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    _refuse_content(path)
    files = [written for written in unfinished.rglob("*") if written.is_file()]
    for file in sorted(files, key=lambda one: one == unfinished / last):
      sync(file)
      moved = path / file.relative_to(unfinished)
      moved.parent.mkdir(parents=True, exist_ok=True)
      sync(moved.parent)
      file.rename(moved)
    sync(path)
  except OSError as error:
    raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
    if is_new:
      # Only an empty folder can be removed.
      with contextlib.suppress(OSError):
        path.rmdir()


def _refuse_content(path: pathlib.Path) -> None:
  with contextlib.suppress(FileNotFoundError):
    if names := sorted(set(os.listdir(path)) - {_UNFINISHED}):
      raise UserError(f"{path} holds other files, such as {names[0]}: choose another --out")
