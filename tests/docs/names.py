"""Finds paths, modules, flags and fields in running text, and compares them with the code.

A name is what stands between backticks. Words in capitals stand for names of the reader's own, so
names that hold one are only compared up to it.
"""

import ast
import functools
import re
from collections.abc import Iterator

import nfnet
from tests.docs.pages import PACKAGES, DocumentationError, check_command, flags_of
from tests.repository import ROOT, syntax_tree
from train.config.field_names import field_types

FOLDERS = (*PACKAGES, "tests", "docs")
"""Folders of the repository whose files and modules the text names."""
FOREIGN_FLAGS = {
  *("--help", "--no-deps", "--version", "--strict", "--dry-run", "--logdir"),
  "--out_file_format",
  "--implicit-dirs",
  *("--only-binary", "--python-version", "--python-platform", "--extra"),
  *("--xla_backend_optimization_level", "--xla_cpu_use_fusion_emitters"),
}
"""Flags of other programs that the text names."""

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
_DOTTED = re.compile(rf"(?:{'|'.join((*PACKAGES, 'tests'))})(?:[.][A-Za-z_]\w*)+")
_FLAG = re.compile(r"--[A-Za-z_][\w.-]*")
_FILE = re.compile(r"[a-z_][\w/]*[.](?:py|toml|yaml|sh|css)\b")


def names(page: str, text: str) -> Iterator[tuple[str, str]]:
  """Yields the place and the words of everything between backticks, outside of fenced blocks."""
  prose = re.sub(r"(?ms)^ *```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), text)
  for match in _CODE.finditer(prose):
    yield f"{page}:{prose[: match.start()].count(chr(10)) + 1}", " ".join(match[1].split())


def check_name(place: str, name: str) -> None:
  """Compares a name with the code; one that is of nothing in this repository passes.

  Raises:
    DocumentationError: the name looks like a path, a module, a flag or a field, and there is none.
  """
  words = name.split()
  if len(words) > 1 and _DOTTED.fullmatch(words[0]) and words[1].startswith("--"):
    # In prose, a flag may stand there without a value.
    flags = [word if "=" in word or word[:2] != "--" else f"{word}=N" for word in words[1:]]
    check_command(place, ["python", "-m", words[0], *flags])
  for word in words:
    word = word.strip(",;()[]{}'\"")
    if path := _PATH.match(word.partition("=")[2] if word.startswith("--") else word):
      _check_path(place, path[0])
    elif word.startswith("--"):
      _check_flag(place, _FLAG.match(word))
    elif file := _FILE.match(word):
      if not any(f"/{path}".endswith(f"/{file[0]}") for path in _all_files()):
        raise DocumentationError(f"{place}: there is no {file[0]}")
    elif dotted := _DOTTED.match(word):
      if not _exists(dotted[0]):
        raise DocumentationError(f"{place}: there is no {dotted[0]}")
    elif field := re.fullmatch(r"(\w+[.][a-z_]\w*)(?:=.*)?", word):
      _check_field(place, field[1])


def _check_path(place: str, path: str) -> None:
  fixed = re.split(r"/[A-Z]{2,}(?=[/_.]|$)", path)[0].rstrip(".")
  if not (ROOT / fixed).exists():
    raise DocumentationError(f"{place}: there is no {fixed}")


def _check_flag(place: str, flag: re.Match | None) -> None:
  if flag is None or flag[0] in FOREIGN_FLAGS:
    return
  name = flag[0].removeprefix("--")
  if name.startswith("config."):
    if name[7:] != "FIELD" and name[7:] not in field_types():
      raise DocumentationError(f"{place}: there is no field {flag[0]}")
  elif name not in _all_flags() and name.removeprefix("no") not in _all_flags():
    raise DocumentationError(f"{place}: no program has a flag {flag[0]}")


def _check_field(place: str, field: str) -> None:
  section = field.partition(".")[0]
  if section in _sections() and field not in field_types():
    raise DocumentationError(f"{place}: there is no field {field}")


@functools.cache
def _sections() -> set[str]:
  return {name.partition(".")[0] for name in field_types() if "." in name}


@functools.cache
def _all_files() -> list[str]:
  return [path.as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]


@functools.cache
def _all_flags() -> set[str]:
  """Returns the flags of all programs."""
  files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
  modules = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
  return {flag for module in modules for flag in flags_of(module.removesuffix(".__main__")) or ()}


def _exists(dotted: str) -> bool:
  """Returns whether there is such a package, module, or name that is defined or imported in one."""
  parts = dotted.split(".")
  if parts[0] == "nfnet" and parts[1] in nfnet.__all__:
    # Names that the package imports when they are used.
    parts = [*nfnet._MODULES[parts[1]].split("."), *parts[1:]]
  for count in range(len(parts), 0, -1):
    path = ROOT.joinpath(*parts[:count])
    rest = parts[count:]
    if path.is_dir() and not rest:
      return True
    if (file := path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).is_file():
      return not rest or _defines(syntax_tree(file), rest)
  return False


def _defines(tree: ast.Module | ast.ClassDef, path: list[str]) -> bool:
  """Returns whether a module or class defines or imports a name, and that name the next one."""
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and node.name == path[0]:
      return len(path) == 1 or _defines(node, path[1:])
    if path[0] in _bound(node):
      return True
  return False


def _bound(node: ast.stmt) -> set[str]:
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return {node.name}
  if isinstance(node, ast.Import | ast.ImportFrom):
    return {alias.asname or alias.name for alias in node.names}
  if isinstance(node, ast.Assign | ast.AnnAssign):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    nodes = (node for target in targets for node in ast.walk(target))
    return {node.id for node in nodes if isinstance(node, ast.Name)}
  return set()
