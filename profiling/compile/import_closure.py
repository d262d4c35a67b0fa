"""Finds the files of the repository that a module depends on, by reading import statements.

Nothing is imported, so this works on any copy of the source tree. The module needs only the
standard library.
"""

import ast
import pathlib
from collections.abc import Iterator

DATA_SUFFIXES = (".json", ".csv")
"""Suffixes of data files. A module is assumed to read those beside it, such as kernels' tiles."""


def import_closure(module: str, root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that running a module may execute or read, sorted, relative to `root`.

  These are the module, all that it imports directly or indirectly, anywhere in a file (functions
  import when they are called), the `__init__.py` of every package on the way, and the data files in
  the folders of all of these. What is not found under `root` belongs to other distributions.

  Args:
    module: dotted name.
    root: folder that holds the top-level packages.

  Raises:
    ModuleNotFoundError: there is no such module under `root`.
  """
  if _file_of(module, root) is None:
    raise ModuleNotFoundError(f"module {module!r} is not in {root}")
  found: set[pathlib.Path] = set()
  seen: set[str] = set()
  waiting = [module]
  while waiting:
    name = waiting.pop()
    if name in seen:
      continue
    seen.add(name)
    path = _file_of(name, root)
    if path is None:
      continue
    found.add(path)
    waiting += _packages_of(name)
    waiting += imported_names(path, name)
  data = {
    file
    for folder in {path.parent for path in found}
    for file in folder.iterdir()
    if file.suffix in DATA_SUFFIXES
  }
  return sorted(path.relative_to(root) for path in found | data)


def imported_names(path: pathlib.Path, module: str) -> Iterator[str]:
  """Yields the dotted names that a file imports; `from a import b` is a and a.b, as b may be one.

  Args:
    path: path of the file.
    module: the file's own dotted name, which relative imports start from.
  """
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        # One dot means the file's own package; for an __init__.py, that is the module itself.
        parts = module.split(".")
        up = node.level - (path.name == "__init__.py")
        base = ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])
      yield base
      yield from (f"{base}.{alias.name}" for alias in node.names)


def _packages_of(name: str) -> Iterator[str]:
  """Yields the packages around a module, whose `__init__.py` run before it."""
  parts = name.split(".")
  for count in range(1, len(parts)):
    yield ".".join(parts[:count])


def _file_of(name: str, root: pathlib.Path) -> pathlib.Path | None:
  """Returns the file of a module or package, or None where there is none under `root`."""
  path = root.joinpath(*name.split("."))
  for file in (path / "__init__.py", path.with_suffix(".py")):
    if file.is_file():
      return file
  return None
