"""Tests the front door: the public names of the package, and that its import is quick."""

import importlib
import importlib.metadata
import subprocess
import sys

import pytest

import nfnet
from tests.repository import ROOT


def test_public_names_are_those_of_the_modules():
  assert len(nfnet.__all__) > 10
  for name in nfnet.__all__:
    module = importlib.import_module(nfnet._MODULES[name])
    assert getattr(nfnet, name) is getattr(module, name)
  assert set(nfnet.__all__) <= set(dir(nfnet))


def test_no_public_name_hides_a_module():
  modules = {path.stem for path in (ROOT / "nfnet").iterdir()}
  assert not modules & set(nfnet.__all__)


def test_the_version_is_that_of_the_installation():
  assert nfnet.__version__ == importlib.metadata.version("nfnets-at-scale")
  assert "__version__" in dir(nfnet)


def test_without_an_installation_the_version_is_unknown(monkeypatch):
  monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: iter(()))
  assert nfnet.__version__ == "unknown"


def test_other_names_are_missing_as_they_are_elsewhere():
  with pytest.raises(AttributeError, match="module 'nfnet' has no attribute 'nothing'"):
    _ = nfnet.nothing


def test_the_import_alone_imports_neither_jax_nor_numpy():
  program = "import nfnet, sys; print({'jax', 'numpy', 'flax'} & set(sys.modules))"
  result = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert result.stdout == "set()\n"
