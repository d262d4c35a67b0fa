import functools
import os
import re
import subprocess
import sys

import pytest

from nfnet.errors import UserError
from nfnet.system.module_process import module_environment
from train.config.own_functions import is_reference, load_function, raised

load = functools.partial(load_function, "source")


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current folder, with a module; imports are undone afterwards."""
  (tmp_path / "my_functions.py").write_text("def seven():\n  return 7\n\nnothing = None\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  known = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - known:
    del sys.modules[name]


def test_paths_are_no_references(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for text in ("a.b:c", "a/b.py:c", "/a b/c.py:D"):
    assert is_reference(text)
  (tmp_path / "a.b:c").mkdir()
  for text in ("a.b:c", "a:b:c", "a/b:c", "a", "C:\\x", "a:", "a.py:"):
    assert not is_reference(text)


@pytest.mark.parametrize(
  "reference", ["my_functions:seven", "my_functions.py:seven", "{folder}/my_functions.py:seven"]
)
def test_the_current_folder_and_paths_are_found(folder, reference):
  assert load(reference.format(folder=folder))() == 7


def test_other_processes_find_the_module(folder, monkeypatch):
  monkeypatch.chdir("/")
  load(f"{folder}/my_functions.py:seven")
  command = [sys.executable, "-P", "-c", "import my_functions; print(my_functions.seven())"]
  environment = module_environment()
  assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "7\n"


def test_no_module_of_the_user_hides_another(folder):
  (folder / "train").mkdir()
  (folder / "train" / "__init__.py").touch()
  load("my_functions:seven")
  assert sys.path.index(str(folder)) == len(sys.path) - 1


@pytest.mark.parametrize(
  ("reference", "message"),
  [
    ("my_functions", "--source=my_functions: must be MODULE:FUNCTION or PATH.py:FUNCTION"),
    ("my_function:seven", "finds no module my_function from this folder"),
    ("nowhere.my_functions:seven", "go to the folder of nowhere.py"),
    ("none.py:seven", "there is no file none.py"),
    ("my_functions.py:eight", "my_functions.py has no function or class eight"),
    ("my_functions:nothing", "my_functions has no function or class nothing$"),
    ("my_functions:sevn", "my_functions has no function or class sevn; nearest: seven$"),
    ("json.py:load", r"another module has the name 'json' \(.*rename the file"),
    ("leaves.py:f", r"leaves raised SystemExit: 0 \(.*leaves\.py, line 2\)"),
    ("broken.py:f", r"ModuleNotFoundError: No .*no_such_dependency.*broken\.py, line 1\)"),
    ("wrong.py:f", r"wrong raised SyntaxError: .*wrong\.py, line 1\)"),
  ],
)
def test_references_that_lead_nowhere(folder, reference, message):
  (folder / "json.py").touch()
  (folder / "leaves.py").write_text("import sys\nsys.exit(0)\n")
  (folder / "broken.py").write_text("import no_such_dependency\n")
  (folder / "wrong.py").write_text("def\n")
  with pytest.raises(UserError, match=message):
    load(reference)


def test_an_error_is_told_with_its_place():
  with pytest.raises(KeyError) as caught:
    os.environ["NO_SUCH_VARIABLE"]
  assert re.fullmatch(r"KeyError: 'NO_SUCH_VARIABLE' \(.*, line \d+\)", raised(caught.value))
  assert raised(ValueError("x")) == "ValueError: x"
