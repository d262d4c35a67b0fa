"""The project as a package: what its wheel holds, what that needs, and that it runs elsewhere."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.repository import ROOT
from tests.test_structure import MODULES, TOPS

DISTRIBUTION = "nfnets-at-scale"
NOT_DEPENDENCIES = {"tensorflow", "torch", "timm"}
"""What `profiling` measures other projects with, where the user has installed them."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Builds the wheel from a copy of the tracked files, as pip does, but without a network."""
  pytest.importorskip("setuptools", reason="the test extra is not installed")
  source = tmp_path_factory.mktemp("source")
  for name in (*TOPS, "README.md", "LICENSE", "pyproject.toml"):
    for path in tracked(name):
      (source / path).parent.mkdir(parents=True, exist_ok=True)
      (source / path).write_bytes((ROOT / path).read_bytes())
  out = tmp_path_factory.mktemp("wheel")
  build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
  subprocess.run(
    [sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True, text=True
  )
  (built,) = out.iterdir()
  return built


def tracked(name):
  """Returns the files of a folder, or a file, that Git knows; paths relative to the repository."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--", name], cwd=ROOT, check=True, capture_output=True, text=True
  )
  return listed.stdout.rstrip("\0").split("\0")


def test_the_wheel_holds_every_tracked_file_of_the_packages_and_no_other(wheel):
  with zipfile.ZipFile(wheel) as opened:
    held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == {path for top in TOPS for path in tracked(top)}
    for path in held:
      assert opened.read(path) == (ROOT / path).read_bytes(), path


def test_everything_that_is_imported_is_declared():
  """Whatever else happens to be installed, the packages import nothing of it."""
  declared = {
    re.match(r"[\w-]+", requirement)[0]
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
      "dependencies"
    ]
  }
  distributions = importlib.metadata.packages_distributions()
  imported = {}
  for module, path in MODULES.items():
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module]
      for top in {name.partition(".")[0] for name in names}:
        if top not in sys.stdlib_module_names and top not in (*TOPS, *NOT_DEPENDENCIES):
          names = distributions.get(top, [top])
          imported.setdefault(canonical(min(names, key=len)), module)
  assert imported.keys() == set(map(canonical, declared)), imported


def canonical(distribution):
  return distribution.lower().replace("_", "-")
