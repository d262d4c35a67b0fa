import ast
import subprocess
import sys

import pytest

from nfnet.system.module_process import module_command, module_environment
from tests.repository import ROOT, syntax_tree
from tests.test_structure import MODULES
from tests.train.data.batch_workers.test_pool import open_pool


@pytest.fixture
def folder_with_the_same_names(tmp_path, monkeypatch):
  """Enters a folder where a user has modules that are called as this project's packages are."""
  for name in ("kernels", "nfnet", "train", "profiling", "numpy", "queue"):
    (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user')")
  monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder_with_the_same_names")
@pytest.mark.parametrize("current", ["", "not in it"])
def test_the_current_folder_is_not_looked_at(monkeypatch, current):
  monkeypatch.setattr(sys, "path", [current, *(path for path in sys.path if path)])
  result = subprocess.run(
    module_command("train.data.batch_workers.deaths"),
    env=module_environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.usefixtures("folder_with_the_same_names")
def test_data_workers_are_this_project_s():
  pool = open_pool(divmod, 1, [])
  pool.request(7, 2)
  assert pool.receive() == (3, 1)
  pool.close()


def test_packages_do_not_come_before_the_standard_library(monkeypatch):
  """The folder that holds this project may hold a backport of what the library has by now."""
  library, packages = "/usr/lib/python", str(ROOT)
  monkeypatch.setattr(sys, "path", ["", library, packages])
  assert module_environment()["PYTHONPATH"] == f"{library}:{packages}"


def test_all_modules_are_started_this_way():
  found = {}
  for name, path in MODULES.items():
    for node in ast.walk(syntax_tree(path)):
      if isinstance(node, ast.List | ast.Tuple):
        words = [one.value for one in node.elts if isinstance(one, ast.Constant)]
        if "-m" in words or "-c" in words:
          found[name] = "-P" in words
  # In a container, the current folder holds this project.
  assert not found.pop("train.launch.job")
  assert not found.pop("nfnet.system.interrupts")
  assert found == {
    "nfnet.system.module_process": True,
    "profiling.measure.gpu_steps": True,
    "profiling.measure.input_comparison": True,
  }
