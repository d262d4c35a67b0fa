"""Copies objects from a bucket into a folder that is removed after use."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from nfnet.buckets import objects
from nfnet.buckets.bucket_path import BucketPath
from nfnet.buckets.daemon_threads import map_unordered
from nfnet.errors import UserError

_OBJECTS_AT_ONCE = 8


@contextlib.contextmanager
def temporary_copies(folder: BucketPath, names: Iterable[str]) -> Iterator[pathlib.Path]:
  """Yields a folder of this machine with copies of objects, which is removed at the end.

  It lies where Python puts temporary files, which TMPDIR names.

  Args:
    folder: folder in the bucket.
    names: paths of objects in it, which they keep in the copy.

  Raises:
    UserError: an object cannot be read, or the disk is full.
  """
  with contextlib.ExitStack() as opened:
    try:
      # After an error, a copy may still be under way.
      temporary = tempfile.TemporaryDirectory(prefix="nfnets-", ignore_cleanup_errors=True)
      place = pathlib.Path(opened.enter_context(temporary))
      bar = tqdm(desc=f"reading {folder}", unit="B", unit_scale=True, disable=None, leave=False)
      with bar:
        for _ in map_unordered(
          lambda name: _copy(folder / name, place / name, bar), names, _OBJECTS_AT_ONCE
        ):
          pass
    except OSError as error:
      if isinstance(error.filename, str) and error.filename.startswith(objects.SCHEME):
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
      raise UserError(
        f"there is no room for a copy of {folder} in {tempfile.gettempdir()} ({error.strerror}): "
        "make room, or name a folder on another disk in TMPDIR"
      ) from error
    yield place


def _copy(source: BucketPath, target: pathlib.Path, bar: tqdm) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  with open(target, "xb") as file:
    for piece in objects.read_pieces(source.bucket, source.object_name):
      file.write(piece)
      bar.update(len(piece))
