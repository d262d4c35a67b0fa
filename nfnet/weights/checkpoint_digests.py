"""Verifies checkpoints by the SHA-256 digest of every file.

Neither Orbax nor TensorStore notices a changed bit. `checkpoints/STEP/digests.sha256` has the
format that `sha256sum` writes and `sha256sum --check` reads; every committed checkpoint has one.
"""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Iterable

from nfnet.errors import shortened
from nfnet.foreign_files.regular_files import open_regular, read_regular_file
from nfnet.system.durable_files import write_synced
from nfnet.system.paths import as_path, is_in_bucket

DIGESTS_FILE = "digests.sha256"
_WITHOUT_DIGEST = (DIGESTS_FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
"""Files without a digest. Orbax writes times into the last two when it commits; nothing reads
them."""
_DIGESTS_BYTES_MAX = 16 * 2**20
_THREADS = 8


def write_digests(folder: pathlib.PurePath) -> None:
  """Writes the digests of the files of a checkpoint that is about to be committed."""
  lines = _digest_lines(folder, _files(folder))
  write_synced(folder / DIGESTS_FILE, "".join(lines.values()))


def find_damage(
  folder: pathlib.PurePath, items: Iterable[str] | None = None, *, needed: Iterable[str] = ()
) -> str | None:
  """Returns what is wrong with a checkpoint, in a few words, or None if it is intact.

  What cannot be read, for whatever reason, is damage.

  Args:
    folder: folder of one checkpoint, here or in a bucket.
    items: names of the subfolders to verify; None verifies the whole folder. A superfluous file
      counts as damage too.
    needed: names of the subfolders that must be there.
  """
  try:
    return _find_damage(folder, items, needed)
  except OSError as error:
    name = os.path.relpath(error.filename or folder, folder)
    return f"{shortened(name)} cannot be read: {error.strerror}"


def _find_damage(
  folder: pathlib.PurePath, items: Iterable[str] | None, needed: Iterable[str]
) -> str | None:
  try:
    text = read_regular_file(folder / DIGESTS_FILE, _DIGESTS_BYTES_MAX).decode()
  except FileNotFoundError:
    return f"{DIGESTS_FILE} is missing"
  except UnicodeDecodeError:
    return f"{DIGESTS_FILE} is damaged"
  expected = {line.rstrip("\n").partition("  ")[2]: line for line in text.splitlines(True)}
  found = _files(folder)
  if items is not None:
    prefixes = tuple(f"{item}/" for item in items)
    expected = {name: line for name, line in expected.items() if name.startswith(prefixes)}
    found = [name for name in found if name.startswith(prefixes)]
  for item in needed:
    if not any(name.startswith(f"{item}/") for name in expected):
      return f"{item} is missing"
  for name in sorted(expected.keys() ^ set(found)):
    if name in expected:
      return f"{shortened(name)} is missing"
    return f"{shortened(name)} is not in {DIGESTS_FILE}"
  for name, line in _digest_lines(folder, found).items():
    if line != expected[name]:
      return f"{shortened(name)} does not have its SHA-256 in {DIGESTS_FILE}"
  return None


def _files(folder: pathlib.PurePath) -> list[str]:
  if is_in_bucket(folder):
    return [name for name in as_path(folder).names() if name not in _WITHOUT_DIGEST]

  def stop(error: OSError) -> None:
    raise error

  # A link to a folder is not followed, so that what lies behind it is missing.
  paths = (
    pathlib.Path(place, name)
    for place, _, names in os.walk(folder, onerror=stop)
    for name in names
    if os.path.isfile(os.path.join(place, name))
  )
  names = (path.relative_to(folder).as_posix() for path in paths)
  return sorted(name for name in names if name not in _WITHOUT_DIGEST)


def _digest_lines(folder: pathlib.PurePath, names: Iterable[str]) -> dict[str, str]:
  def line(name: str) -> str:
    try:
      with open_regular(folder / name) as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n"
    except OSError as error:
      # A read that fails, unlike one that cannot begin, does not say of which file.
      raise OSError(error.errno, error.strerror, str(folder / name)) from error

  # Hashing releases the interpreter's lock.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(names, pool.map(line, names), strict=True))
