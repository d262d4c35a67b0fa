import pytest

from profiling.compile.import_closure import import_closure


@pytest.fixture
def tree(tmp_path):
  """A repository with every way of importing that there is."""
  files = {
    "app/__init__.py": "",
    "app/main.py": "import os, numpy\nfrom app import sibling\nfrom library.inner import f\n",
    "app/sibling.py": "def late():\n  from app.lazy import g\n  return g\n",
    "app/lazy.py": "from . import relative\nfrom .deep.leaf import x\n",
    "app/relative.py": "",
    "app/deep/__init__.py": "from .below import y\n",
    "app/deep/below.py": "from ..beside import z\n",
    "app/deep/leaf.py": "import library.other as other\n",
    "app/beside.py": "",
    "app/unused.py": "import app.main\n",
    "library/__init__.py": "import settings\n",
    "library/inner.py": "",
    "library/other.py": "",
    "library/tiles.json": "[]",
    "library/README.md": "",
    "settings.py": "",
    "data/table.csv": "",
  }
  for name, text in files.items():
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  return tmp_path


def test_everything_that_is_imported_anywhere_and_the_data_beside_it(tree):
  assert [str(path) for path in import_closure("app.main", tree)] == [
    "app/__init__.py",
    "app/beside.py",
    "app/deep/__init__.py",
    "app/deep/below.py",
    "app/deep/leaf.py",
    "app/lazy.py",
    "app/main.py",
    "app/relative.py",
    "app/sibling.py",
    "library/__init__.py",
    "library/inner.py",
    "library/other.py",
    "library/tiles.json",
    "settings.py",
  ]


def test_importing_a_package_runs_its_init(tree):
  assert [str(path) for path in import_closure("app.deep", tree)] == [
    "app/__init__.py",
    "app/beside.py",
    "app/deep/__init__.py",
    "app/deep/below.py",
  ]


def test_a_module_that_is_not_there_is_an_error(tree):
  with pytest.raises(ModuleNotFoundError, match=r"'app\.missing'"):
    import_closure("app.missing", tree)
