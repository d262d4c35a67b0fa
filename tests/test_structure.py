"""The import graph of the tree has no circle and no upward arrow, and no folder is crowded."""

import ast
import collections
import functools
import pathlib

import pytest

from tests.repository import ROOT, syntax_tree

TOPS = ("kernels", "nfnet", "train", "profiling")
FILES_PER_FOLDER_MAX = 15

ALLOWED = {
  "train.report": (),
  "train.config": (),
  "train.data": ("train.report", "train.config"),
  "train.step": ("train.report", "train.config"),
  "train.run": ("train.report", "train.config", "train.data", "train.step"),
  "train.scaling": ("train.report",),
  "train.published_runs": (),
  "train.small_study": (),
  "train.configs": ("train.config", "train.data", "train.scaling", "train.published_runs"),
  "train.demo_data": ("train.data",),
  "train.launch": ("train.report", "train.config", "train.step", "train.run"),
  "train.sweep": (
    "train.report",
    "train.config",
    "train.data",
    "train.step",
    "train.run",
    "train.scaling",
  ),
  "profiling.compiler_text": (),
  "profiling.compile": ("profiling.compiler_text",),
  "profiling.estimate": ("profiling.compiler_text", "profiling.compile"),
  "profiling.measure": ("profiling.compiler_text", "profiling.compile", "profiling.estimate"),
}
"""What each folder may import of its own top-level package. Commands, which are the modules at the
top of a package, may import every folder and no other command."""


def _modules() -> dict[str, pathlib.Path]:
  """Returns the path of every module by its dotted name."""
  modules = {}
  for top in TOPS:
    for path in (ROOT / top).rglob("*.py"):
      parts = path.relative_to(ROOT).with_suffix("").parts
      modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return modules


MODULES = _modules()


@functools.cache
def _imports(name: str) -> set[str]:
  """Returns the modules of this project that a module imports, at its top or in a function."""
  found = set()
  for node in ast.walk(syntax_tree(MODULES[name])):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      submodules = {f"{node.module}.{alias.name}" for alias in node.names}
      found.update(submodules & MODULES.keys())
      if not submodules <= MODULES.keys():
        found.add(node.module)
  return found & MODULES.keys()


def _folder(name: str) -> str | None:
  """Returns the folder of a top-level package that a module is in; None for one of its commands."""
  parts = name.split(".")
  folder = ".".join(parts[:2])
  if len(parts) == 1 or MODULES.get(folder, ROOT / "x").name != "__init__.py":
    return None
  return folder


def _circle(graph: dict[str, set[str]]) -> list[str]:
  """Returns the names along one circle of the graph; empty where there is none."""
  state: dict[str, str] = {}

  def visit(name: str, path: list[str]) -> list[str]:
    state[name] = "open"
    for other in sorted(graph[name]):
      if state.get(other) == "open":
        return [*path[path.index(other) :], other] if other in path else [name, other]
      if other not in state and (circle := visit(other, [*path, other])):
        return circle
    state[name] = "closed"
    return []

  for name in sorted(graph):
    if name not in state and (circle := visit(name, [name])):
      return circle
  return []


def test_no_module_imports_itself_through_others():
  assert _circle({name: _imports(name) for name in MODULES}) == []


def test_a_circle_would_be_found():
  assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_is_below_it(folder):
  top = folder.split(".")[0]
  own = [name for name in MODULES if name == folder or name.startswith(f"{folder}.")]
  assert own, f"{folder} is gone; change ALLOWED"
  upward = [
    f"{name} imports {other}"
    for name in own
    for other in sorted(_imports(name))
    if other.split(".")[0] == top
    and other != top
    and _folder(other) not in (folder, *ALLOWED[folder])
  ]
  assert upward == []


@pytest.mark.parametrize("top", ["train", "profiling"])
def test_every_folder_has_a_rule(top):
  folders = {_folder(name) for name in MODULES if name.startswith(f"{top}.")} - {None}
  assert folders == {name for name in ALLOWED if name.startswith(f"{top}.")}


@pytest.mark.parametrize("top", ["train", "profiling"])
def test_commands_import_no_other_command(top):
  commands = {name for name in MODULES if name.startswith(f"{top}.") and _folder(name) is None}
  between = [f"{name} imports {other}" for name in commands for other in _imports(name) & commands]
  assert between == []


def test_compiler_text_needs_nothing_but_the_standard_library():
  own = [name for name in MODULES if name.startswith("profiling.compiler_text")]
  assert {other for name in own for other in _imports(name)} <= set(own)


def test_no_folder_has_too_many_files():
  """Commands stand at the top of train and profiling, so these two are not counted."""
  counts = collections.Counter(path.parent for path in MODULES.values())
  crowded = {
    str(folder.relative_to(ROOT)): count
    for folder, count in counts.items()
    if count > FILES_PER_FOLDER_MAX and folder.name not in ("train", "profiling")
  }
  assert crowded == {}


@pytest.mark.parametrize("top", ["train", "profiling"])
def test_only_commands_stand_at_the_top(top):
  for path in (ROOT / top).glob("*.py"):
    if path.name != "__init__.py":
      assert '__name__ == "__main__"' in path.read_text(encoding="utf-8"), path
