"""The notebooks of the documentation have no outputs, and their cells run, without Jupyter."""

import contextlib
import io
import json

import pytest

from tests.docs.pages import ROOT, page_name

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def code_cells(path):
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  return [cell for cell in cells if cell["cell_type"] == "code"]


def run(path):
  """Runs the cells of a notebook in one namespace and returns what they print."""
  namespace, output = {"__name__": "__main__"}, io.StringIO()
  with contextlib.redirect_stdout(output):
    for number, cell in enumerate(code_cells(path)):
      exec(compile("".join(cell["source"]), f"{path.name}:cell {number}", "exec"), namespace)
  return output.getvalue()


def test_there_is_a_notebook():
  assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_name)
def test_outputs_are_stripped_and_cells_are_python(path):
  for number, cell in enumerate(code_cells(path)):
    assert (cell["outputs"], cell["execution_count"]) == ([], None)
    compile("".join(cell["source"]), f"cell {number}", "exec")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_pictures_become_predictions(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv("MPLBACKEND", "Agg")
  output = run(ROOT / "docs" / "notebooks" / "pictures_to_predictions.ipynb")
  accuracy = int(output.partition("%")[0])
  assert accuracy > 50, output
