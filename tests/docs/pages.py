"""Reads the fenced blocks and commands of the documentation, and compares them with the code.

The words after a fence say what is done with its block:

    bash         the tests run all such blocks of a page in order, as one shell session
    bash slow    `make test-all` runs these as well
    bash long    takes too long, or needs files that the tests do not have: compared with the code
    bash tpu     needs a TPU slice or a cluster: compared with the code; launches are run dry
    bash make    targets of the Makefile
    python       run like `bash`; with nothing to run between them, blocks are one program
    python slow  `make test-all` runs these as well
    text output  lines that the block before prints, in this order; `...` stands for other lines
    text, toml   shown only
"""

import ast
import dataclasses
import functools
import pathlib
import re
import shlex
from collections.abc import Iterator

from nfnet.system.console_script import PROGRAM, commands
from tests.repository import ROOT, syntax_tree
from train.config.experiment import Data, Experiment, Optimizer, Schedule
from train.config.field_names import field_types
from train.config.files import load_experiment
from train.config.overrides import override

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = {
  *("bash", "bash slow", "bash long", "bash tpu", "bash make"),
  *("python", "python slow", "text", "text output", "toml"),
}
PACKAGES = ("kernels", "nfnet", "train", "profiling")
FASHION_MNIST = ROOT / "train" / "demo_data" / "fashion_mnist"
CLUSTER_PROGRAMS = {"bash", "docker", "gcloud", "kubectl"}
"""Programs besides Python that commands in `bash tpu` may call."""
PLACEHOLDERS = {"IMAGE": "example.com/nfnets:1", "CLUSTER": "cluster", "STORAGE": "storage"}
"""Values that a dry run takes in place of words that readers replace by their own."""

_FENCE = re.compile(r"( *)```(.*)")
_INLINE = re.compile(r"`((?:python -m|nfnets) [^`]+)`")
_ANY = Experiment(
  name="any",
  data=Data(batch_size=64),
  optimizer=Optimizer(warmup_epochs=0),
  schedule=Schedule(train_epochs=1),
)


class DocumentationError(Exception):
  """A page says something that is not true; the message begins with the place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
  """A fenced block.

  Attributes:
    page: file name of the page.
    line: line number of the opening fence.
    kind: words after the opening fence.
    text: lines between the fences.
  """

  page: str
  line: int
  kind: str
  text: str

  @property
  def place(self) -> str:
    """The page and the line, for messages."""
    return f"{self.page}:{self.line}"


def blocks(name: str, text: str) -> list[Block]:
  """Returns all blocks of a page, in order.

  Args:
    name: file name of the page, for messages.
    text: content of the page.

  Raises:
    DocumentationError: a fence is of an unknown kind or is not closed.
  """
  found, opened = [], None
  for number, line in enumerate(text.splitlines(), start=1):
    fence = _FENCE.fullmatch(line)
    if fence is None:
      if opened:
        opened[3].append(line.removeprefix(opened[2]))
    elif opened is None:
      opened = (number, fence[2].strip(), fence[1], [])
      if opened[1] not in KINDS:
        raise DocumentationError(
          f"{name}:{number}: unknown fence ```{opened[1]}; take one of {', '.join(sorted(KINDS))}"
        )
    else:
      found.append(Block(page=name, line=opened[0], kind=opened[1], text="\n".join(opened[3])))
      opened = None
  if opened:
    raise DocumentationError(f"{name}:{opened[0]}: fence is not closed")
  return found


def page_name(path: pathlib.Path) -> str:
  """Returns a page's file name as messages and test ids show it."""
  return path.relative_to(ROOT).as_posix()


def read_page(path: pathlib.Path) -> list[Block]:
  """Returns all blocks of a page, in order.

  Raises:
    DocumentationError: a fence is of an unknown kind or is not closed.
  """
  return blocks(page_name(path), path.read_text(encoding="utf-8"))


def inline_commands(name: str, text: str) -> Iterator[tuple[str, list[str]]]:
  """Yields place and words of each `python -m ...` or `nfnets ...` in running text and tables."""
  inside = False
  lines = []
  for line in text.splitlines():
    is_fence = _FENCE.fullmatch(line) is not None
    inside ^= is_fence
    lines.append("" if inside or is_fence else line)
  for match in _INLINE.finditer("\n".join(lines)):
    number = "\n".join(lines)[: match.start()].count("\n") + 1
    # Brackets hold what may be left out.
    yield f"{name}:{number}", shlex.split(match[1].replace("[", "").replace("]", ""))


def shell_commands(text: str) -> Iterator[list[str]]:
  """Yields the words of each command, without pipes, redirections, and variables or exec before it.

  A command that has `||` after it, since it fails on purpose, is left out.
  """
  for line in text.replace("\\\n", " ").splitlines():
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skips = False
    for word in lexer:
      if skips:
        skips = False
      elif set(word) <= set("|&;"):
        if word != "||":
          yield words
        words = []
      elif set(word) <= set("<>"):
        skips = True
      elif words or not re.match(r"\w+=|exec$", word):
        words.append(word)
    yield words


def check_block(block: Block) -> None:
  """Compares the commands of a block with the code.

  Raises:
    DocumentationError: a command names something that does not exist, or has a comment, which
      readers would copy.
  """
  if not block.kind.startswith("bash"):
    return
  if re.search(r"(^|\s)#", block.text):
    raise DocumentationError(f"{block.place}: a comment would be copied; write it above the block")
  for words in filter(None, shell_commands(block.text)):
    if words[0] in ("python", PROGRAM):
      check_command(block.place, words)
    elif block.kind == "bash make":
      _check_make(block.place, words)
    elif block.kind == "bash tpu" and words[0] not in CLUSTER_PROGRAMS:
      raise DocumentationError(f"{block.place}: unknown program {words[0]}")


def check_command(place: str, words: list[str]) -> None:
  """Checks module, flags, configuration and overrides of `python -m MODULE ...`, or `nfnets NAME`.

  Raises:
    DocumentationError: one of them does not exist.
  """
  if words[0] == PROGRAM:
    modules = {command.name: command.module for command in commands()}
    if words[1].startswith("--") or words[1] == "COMMAND":
      return
    if words[1] not in modules:
      raise DocumentationError(f"{place}: {PROGRAM} has no command {words[1]}")
    words = ["python", "-m", modules[words[1]], *words[2:]]
  if words[1:2] == ["-"]:
    return
  if words[1:2] != ["-m"] or len(words) < 3:
    raise DocumentationError(f"{place}: {' '.join(words)}: write python -m MODULE")
  module, arguments = words[2], words[3:]
  if module.split(".")[0] not in (*PACKAGES, "tests"):
    if module in ("mkdocs", "pytest", "ruff", "..."):
      return
    raise DocumentationError(f"{place}: {module} is not of this project")
  known = flags_of(module)
  if known is None:
    raise DocumentationError(f"{place}: there is no program {module}")
  overrides = [word for word in arguments if word.startswith("--config.")]
  config = None
  for word in arguments:
    if not word.startswith("--") or word.startswith("--config."):
      continue
    name, _, value = word.removeprefix("--").partition("=")
    positive = name.removeprefix("no")
    kind = known.get(name) or known.get(positive if known.get(positive) == "bool" else "")
    if kind is None:
      raise DocumentationError(f"{place}: {module} has no flag --{name}")
    # A word in capitals or a shell variable may stand for a number.
    if kind in ("integer", "float") and not re.fullmatch(r"[A-Z]+|\$\w+|-?[\d.]+", value):
      raise DocumentationError(f"{place}: {word}: not a number")
    if name == "config":
      config = value
  _check_configuration(place, config, overrides)


def _check_configuration(place: str, config: str | None, overrides: list[str]) -> None:
  unknown = [word for word in overrides if word[9:].partition("=")[0] not in field_types()]
  if unknown:
    raise DocumentationError(f"{place}: there is no field {unknown[0].partition('=')[0]}")
  # A word in capitals stands for any value, in overrides for a number too.
  chosen = [word for word in overrides if not re.search(r"=[A-Z]+$", word) or ".path=" in word]
  try:
    if config is None or re.fullmatch(r"[A-Z]+", config):
      for word in chosen:
        override(_ANY, [word])
    else:
      # A name of one of `train.configs` is not a path.
      reference = str(ROOT / config) if "/" in config else config
      # Any data set will do for one that the reader has.
      reference = re.sub(r"\bdata=[A-Z]+\b", f"data={FASHION_MNIST}", reference)
      load_experiment(reference, chosen)
  except Exception as error:
    raise DocumentationError(f"{place}: {error}") from error


def _check_make(place: str, words: list[str]) -> None:
  targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  if words[0] != "make" or not targets.issuperset(words[1:]):
    raise DocumentationError(f"{place}: {' '.join(words)} is not in the Makefile")


@functools.cache
def flags_of(module: str) -> dict[str, str] | None:
  """Returns the kinds of the flags that a program takes, by name; None if there is no such program.

  They are read from the source: the program's own definitions, those at the top level of what it
  imports, and those of imported functions `define_...` that it calls.
  """
  path = ROOT / module.replace(".", "/")
  file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
  if not file.is_file() or "__main__" not in file.read_text():
    return None
  tree = syntax_tree(file)
  found = dict(_definitions(ast.walk(tree)))
  called = {
    getattr(node.func, "attr", getattr(node.func, "id", None))
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
  }
  seen: set[pathlib.Path] = set()
  waiting = list(_imported_files(tree))
  while waiting:
    imported = waiting.pop()
    if imported not in seen:
      seen.add(imported)
      tree = syntax_tree(imported)
      statements = (node for node in tree.body if isinstance(node, ast.Assign | ast.Expr))
      found.update(_definitions(node.value for node in statements))
      functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
      for function in functions:
        if function.name.startswith("define_") and function.name in called:
          found.update(_definitions(ast.walk(function)))
      waiting += _imported_files(tree)
  return found


def _definitions(nodes) -> Iterator[tuple[str, str]]:
  for node in nodes:
    if isinstance(node, ast.Call):
      function = getattr(node.func, "attr", getattr(node.func, "id", ""))
      kind = re.fullmatch(r"(?:DEFINE_(?:multi_)?|define_(?=path))(\w+)", function)
      if kind and isinstance(node.args[0], ast.Constant):
        yield node.args[0].value, kind[1].replace("boolean", "bool")


@functools.cache
def _imported_files(tree: ast.Module) -> list[pathlib.Path]:
  found = []
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
      file = (ROOT / name.replace(".", "/")).with_suffix(".py")
      if name.split(".")[0] in PACKAGES and file.is_file():
        found.append(file)
  return found
