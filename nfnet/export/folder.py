"""Makes a folder that appears under its name when it is complete, or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from nfnet.errors import UserError
from nfnet.system.durable_files import sync


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[pathlib.Path]:
  """Yields a folder beside `out` that is renamed to it after the block, or removed if that fails.

  Args:
    out: path that is not there yet, or an empty folder.

  Raises:
    UserError: the folder holds something, or cannot be written.
  """
  path = pathlib.Path(os.path.abspath(out))
  _refuse_content(path)
  unfinished = path.with_name(f".{path.name}.unfinished.{os.getpid()}")
  try:
    unfinished.mkdir(parents=True)
    yield unfinished
    for written in unfinished.rglob("*"):
      sync(written)
    sync(unfinished)
    _refuse_content(path)
    # An empty folder gives way to it.
    unfinished.rename(path)
    sync(path.parent)
  except OSError as error:
    raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _refuse_content(path: pathlib.Path) -> None:
  with contextlib.suppress(FileNotFoundError):
    if names := sorted(os.listdir(path)):
      raise UserError(f"{path} holds other files, such as {names[0]}: choose another --out")
