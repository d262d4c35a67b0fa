"""Who may import whom: kernels <- nfnet <- train <- profiling, and the rules inside an op."""

import ast
import sys

import pytest

from profiling.compile.import_closure import imported_names
from tests.repository import ROOT, syntax_tree

LAYERS = ("kernels", "nfnet", "train", "profiling")
FILES = [path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
OPS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/op.py"))
BUILT_ON = {"se_residual": {"fully_connected", "scaled_ws_conv"}, "stem": {"scaled_ws_conv"}}
"""Ops with others inside. Squeeze-excite and its convolution each need what the other computes,
forward and backward, and its gate has two fully connected layers; the stem is four convolutions."""
OP_FILES = {"__init__", "formulas", "op", "pallas", "reference"}
"""Files that every op has; it may have `filters`, `packing`, `packed_window`, `tile`, `vjp` and
files whose names end in `_tpu` besides."""
SWEPT_FILES = {"problem", "tile"}
"""Files that an op has, with tiles.json, if a sweep chooses its tiles."""
MAY_IMPORT = {
  "formulas": {"formulas"},
  "filters": {"formulas"},
  "reference": {"formulas", "filters", "reference"},
  "problem": {"formulas", "problem"},
  "packing": {"problem"},
  "tile": {"problem", "packing", "tile"},
  "packed_window": {"problem", "packing", "tile"},
  "_tpu": {"formulas", "filters", "problem", "packing", "tile", "packed_window", "_tpu"},
  "vjp": {"formulas", "filters", "problem", "tile", "vjp", "_tpu"},
  "pallas": {"formulas", "filters", "problem", "tile", "vjp", "pallas", "_tpu"},
  "op": {"formulas", "filters", "reference", "pallas", "op"},
  "__init__": set(),
}
"""By kind of an op's file: the kinds of files, of the op and of what it is built on, that it may
import."""


def imported_modules(path):
  """Dotted names that a file imports; `from a import b` counts as a and a.b, as b may be one."""
  return set(imported_names(ROOT / path, ".".join(path.with_suffix("").parts)))


def test_there_is_something_to_look_at():
  assert len(OPS) >= 3
  assert {path.parts[0] for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_left(path):
  forbidden = (*LAYERS[LAYERS.index(path.parts[0]) + 1 :], "tests")
  tops = {name.split(".")[0] for name in imported_modules(path)}
  assert not tops & set(forbidden)


def kind(stem):
  """Returns the kind of an op's file: `_tpu` for all kernels, else the name of the file."""
  return "_tpu" if stem.endswith("_tpu") else stem


def imports_of_op(path):
  """Returns the (op, kind of file) pairs that a file imports, and all other names."""
  of_op, others = set(), set()
  for name in imported_modules(path):
    package, _, rest = name.partition(".")
    op, _, rest = rest.partition(".")
    if package != "kernels" or op not in OPS:
      others.add(name)
    elif rest:
      of_op.add((op, kind(rest.split(".")[0])))
  return of_op, others


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_the_same_files(op):
  stems = {path.stem for path in (ROOT / "kernels" / op).glob("*.py")}
  kinds = {kind(stem) for stem in stems}
  is_swept = (ROOT / "kernels" / op / "tiles.json").exists()
  others = {"filters", "packing", "packed_window", "vjp", "_tpu"}
  # Without a sweep, a rule chooses the tiles.
  others |= set() if is_swept else {"tile"}
  assert kinds - others == OP_FILES | (SWEPT_FILES if is_swept else set())


@pytest.mark.parametrize("op", OPS)
def test_the_files_of_an_op_import_what_their_kind_may(op):
  for path in (ROOT / "kernels" / op).glob("*.py"):
    of_op, others = imports_of_op(path.relative_to(ROOT))
    assert {other for other, _ in of_op} <= {op} | BUILT_ON.get(op, set()), path
    kinds = {imported for _, imported in of_op}
    assert kinds <= MAY_IMPORT[kind(path.stem)], path
    if path.stem in ("filters", "formulas", "reference"):
      tops = {name.split(".")[0] for name in others if not name.startswith("kernels.layout")}
      assert tops <= {"jax", "jaxtyping", "numpy", *sys.stdlib_module_names}, path


@pytest.mark.parametrize("op", OPS)
def test_only_the_public_op_has_defaults(op):
  """A forgotten argument would otherwise mix formulas, or drop a gradient, and nobody would see."""
  for path in (ROOT / "kernels" / op).glob("*.py"):
    if kind(path.stem) in ("formulas", "reference", "_tpu", "vjp", "pallas"):
      for function in syntax_tree(path).body:
        if isinstance(function, ast.FunctionDef):
          defaults = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
          assert not defaults, f"{path}: {function.name}"


@pytest.mark.parametrize("op", OPS)
def test_a_file_of_kernels_holds_pallas_calls_and_nothing_else_does(op):
  for path in (ROOT / "kernels" / op).glob("*.py"):
    _, others = imports_of_op(path.relative_to(ROOT))
    calls = {"kernels.call", "jax.experimental.pallas"} & others
    assert bool(calls) == path.stem.endswith("_tpu"), path
