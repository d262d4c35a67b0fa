"""Where no folder for its cache can be written, Matplotlib refuses to be imported."""

import ast
import importlib
import sys

import pytest

from nfnet.errors import UserError
from tests.repository import ROOT, syntax_tree
from tests.train.scaling.known_laws import fine_tuned_runs
from train.config.experiment import Experiment
from train.configs import demo_pretrain
from train.report.output import importing_matplotlib, save_figure
from train.run import loop
from train.run.records.metrics import MetricsWriter
from train.scaling.checkpoint_choice import as_text, choose, draw

# These import it when they are imported themselves.
DRAWING = (
  "train.report.confusion_plot",
  "train.report.figure",
  "train.report.run_plots",
  "train.scaling.analysis_plots",
)
REASON = "Matplotlib requires access to a writable cache directory"


@pytest.fixture(autouse=True)
def refused_import(monkeypatch):
  class Refuse:
    @staticmethod
    def find_spec(name, *unused):
      if name.partition(".")[0] == "matplotlib":
        raise OSError(REASON)

  for name in list(sys.modules):
    if name.partition(".")[0] == "matplotlib" or name in (*DRAWING, "train.scaling_law"):
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setattr(sys, "meta_path", [Refuse, *sys.meta_path])


def test_a_run_ends_well_without_plots(tmp_path, capsys, caplog):
  experiment: Experiment = demo_pretrain.experiment()
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    writer.write({"step": 1, "kind": "train", "loss": 1.0})
  records = loop._report_end(experiment, str(tmp_path), str(tmp_path))
  assert [record["loss"] for record in records] == [1.0]
  assert experiment.name in capsys.readouterr().out
  assert f"plots cannot be drawn: {REASON}" in caplog.messages
  assert not (tmp_path / "plots").exists()


def test_tables_are_made_without_plots(tmp_path):
  choice = choose(fine_tuned_runs(), ())
  assert "Ranked by" in as_text(choice)
  save_figure("plot", None, lambda: draw(choice))
  with pytest.raises(UserError, match=f"plots cannot be drawn: {REASON}"):
    save_figure("plot", str(tmp_path / "a.png"), lambda: draw(choice))


@pytest.mark.parametrize("command", ["core_hours", "both_families", "slices"])
def test_commands_of_profiling_make_tables_without_plots(command, tmp_path, monkeypatch):
  monkeypatch.delitem(sys.modules, f"profiling.{command}", raising=False)
  module = importlib.import_module(f"profiling.{command}")
  with pytest.raises(UserError, match=f"plots cannot be drawn: {REASON}"):
    module.save_figure("plot", str(tmp_path / "a.png"), lambda: module.draw([]))


def imported_at_once(path):
  """Returns the names of modules that a module imports when it is imported itself."""
  names = set()
  for statement in syntax_tree(path).body:
    if isinstance(statement, ast.Import):
      names.update(alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
      names.add(statement.module)
      names.update(f"{statement.module}.{alias.name}" for alias in statement.names)
  return names


def test_only_modules_that_draw_import_matplotlib_at_once():
  """A command that imported one of them at once would end without the table it has made."""
  paths = [
    path for folder in ("nfnet", "train", "profiling") for path in (ROOT / folder).rglob("*.py")
  ]
  importing = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in paths
    if any(
      name.partition(".")[0] == "matplotlib" or name in DRAWING for name in imported_at_once(path)
    )
  }
  assert importing == set(DRAWING)


def test_laws_are_fitted_without_plots():
  import train.scaling_law  # noqa: F401

  with pytest.raises(UserError, match=REASON), importing_matplotlib():
    # `from train.scaling import` would find the attribute that an earlier test has imported.
    importlib.import_module("train.scaling.analysis_plots")
