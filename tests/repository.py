"""Where the repository's files are, for tests that read or run them."""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


@functools.cache
def syntax_tree(file: pathlib.Path) -> ast.Module:
  """Returns the parsed source of a module; many tests look at all modules."""
  return ast.parse(file.read_text(encoding="utf-8"))
