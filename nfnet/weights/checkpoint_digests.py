"""Verifies checkpoints by the SHA-256 digest of every file.

Neither Orbax nor TensorStore notices a changed bit. `checkpoints/STEP/digests.sha256` has the
format that `sha256sum` writes and `sha256sum --check` reads; every committed checkpoint has one.
"""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Iterable

DIGESTS_FILE = "digests.sha256"
_WITHOUT_DIGEST = (DIGESTS_FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
"""Files without a digest. Orbax writes times into the last two when it commits; nothing reads
them."""
_THREADS = 8


def write_digests(folder: pathlib.Path) -> None:
  """Writes the digests of the files of a checkpoint that is about to be committed."""
  lines = _digest_lines(folder, _files(folder))
  with (folder / DIGESTS_FILE).open("w") as file:
    file.write("".join(lines.values()))
    file.flush()
    os.fsync(file.fileno())


def find_damage(folder: pathlib.Path, items: Iterable[str] | None = None) -> str | None:
  """Returns what is wrong with a checkpoint, in a few words, or None if it is intact.

  Args:
    folder: folder of one checkpoint.
    items: names of the subfolders to verify; None verifies the whole folder. A superfluous file
      counts as damage too.
  """
  try:
    text = (folder / DIGESTS_FILE).read_bytes().decode()
    expected = {line.rstrip("\n").partition("  ")[2]: line for line in text.splitlines(True)}
  except FileNotFoundError:
    return f"{DIGESTS_FILE} is missing"
  except UnicodeDecodeError:
    return f"{DIGESTS_FILE} is damaged"
  found = _files(folder)
  if items is not None:
    prefixes = tuple(f"{item}/" for item in items)
    expected = {name: line for name, line in expected.items() if name.startswith(prefixes)}
    found = [name for name in found if name.startswith(prefixes)]
  for name in sorted(expected.keys() ^ set(found)):
    return f"{name} is missing" if name in expected else f"{name} is not in {DIGESTS_FILE}"
  for name, line in _digest_lines(folder, found).items():
    if line != expected[name]:
      return f"{name} does not have its SHA-256 in {DIGESTS_FILE}"
  return None


def _files(folder: pathlib.Path) -> list[str]:
  names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
  return sorted(name for name in names if name not in _WITHOUT_DIGEST)


def _digest_lines(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
  def line(name: str) -> str:
    with (folder / name).open("rb") as file:
      return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n"

  # Hashing releases the interpreter's lock.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(names, pool.map(line, names), strict=True))
