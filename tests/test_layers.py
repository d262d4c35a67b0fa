"""Who may import whom: kernels <- nfnet <- train <- profiling, and the rules inside an op."""

import pathlib
import sys

import pytest

from profiling.compile.import_closure import imported_names

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = ("kernels", "nfnet", "train", "profiling")
FILES = [path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
OPS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/op.py"))
BUILT_ON = {"se_residual": "scaled_ws_conv"}
"""The one op that has another inside: each needs what the other computes, forward and backward."""


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


@pytest.mark.parametrize("op", OPS)
def test_a_reference_imports_jax_and_numpy_only(op):
  path = pathlib.Path("kernels") / op / "reference.py"
  inner = f"kernels.{BUILT_ON.get(op)}"
  names = (name for name in imported_modules(path) if name.removesuffix(".reference") != inner)
  tops = {name.split(".")[0] for name in names if not name.startswith(f"{inner}.reference.")}
  assert tops <= {"jax", "jaxtyping", "numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("op", OPS)
def test_an_op_imports_no_other_op_and_its_kernel_no_reference(op):
  for path in (ROOT / "kernels" / op).rglob("*.py"):
    names = imported_modules(path.relative_to(ROOT))
    others = [f"kernels.{other}" for other in OPS if other not in (op, BUILT_ON.get(op))]
    assert not [name for name in names if name.startswith(tuple(others))]
    if path.stem.endswith("_tpu"):
      assert not [name for name in names if ".reference" in name]
