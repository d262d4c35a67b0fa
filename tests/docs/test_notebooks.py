"""The notebooks of the documentation have no outputs, and their cells run, without Jupyter."""

import contextlib
import io
import json

import numpy as np
import pytest

from tests.docs.pages import ROOT, page_name

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def code_cells(path):
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  return [cell for cell in cells if cell["cell_type"] == "code"]


def run(path):
  """Runs the cells of a notebook in one namespace; returns it, and the lines they print."""
  namespace, output = {"__name__": "__main__"}, io.StringIO()
  with contextlib.redirect_stdout(output):
    for number, cell in enumerate(code_cells(path)):
      exec(compile("".join(cell["source"]), f"{path.name}:cell {number}", "exec"), namespace)
  return namespace, output.getvalue().splitlines()


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
  # Not before the backend is chosen.
  from matplotlib import pyplot as plt

  plt.close("all")
  try:
    namespace, lines = run(ROOT / "docs" / "notebooks" / "pictures_to_predictions.ipynb")
    drawn = [plt.figure(number).axes for number in plt.get_fignums()]
  finally:
    plt.close("all")
  names, labels = namespace["names"], namespace["labels"]
  accuracy = int(lines[0].partition("%")[0])
  assert accuracy > 50, lines

  features, predictions = drawn
  titles = [axis.get_title() for axis in features]
  assert titles == [names[labels[0]], *(f"stage {number}" for number in (1, 2, 3, 4))]
  assert [axis.get_title() for axis in predictions] == [
    names[one] for one in namespace["predictions"][:10]
  ]
  for axis in (*features[:-1], *predictions):
    (image,) = axis.images
    assert np.ptp(image.get_array()) > 0

  # The most probable classes of the classifier from a file, with their names.
  logits = np.float64(namespace["logits"])
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  assert len(lines) == 1 + len(logits) == 6
  for line, label, row in zip(lines[1:], labels[500:], probabilities, strict=False):
    best = [f"{names[one]} {row[one]:.1%}" for one in np.argsort(-row)[:3]]
    assert line == f"{names[label]}: {', '.join(best)}"
  hits = logits.argmax(axis=1) == labels[500:505]
  assert hits.sum() >= 2, lines
