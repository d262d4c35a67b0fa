"""Where no folder for its cache can be written, Matplotlib refuses to be imported."""

import importlib
import sys

import pytest

from nfnet.errors import UserError
from tests.train.scaling.known_laws import fine_tuned_runs
from train.config.experiment import Experiment
from train.configs import demo_pretrain
from train.report.output import importing_matplotlib
from train.run import loop
from train.run.records.metrics import MetricsWriter
from train.scaling.checkpoint_choice import as_text, choose, draw

REASON = "Matplotlib requires access to a writable cache directory"


@pytest.fixture(autouse=True)
def refused_import(monkeypatch):
  class Refuse:
    @staticmethod
    def find_spec(name, *unused):
      if name.partition(".")[0] == "matplotlib":
        raise OSError(REASON)

  # These import it when they are imported themselves.
  drawing = ("train.report.figure", "train.report.run_plots", "train.scaling.analysis_plots")
  for name in list(sys.modules):
    if name.partition(".")[0] == "matplotlib" or name in (*drawing, "train.scaling_law"):
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setattr(sys, "meta_path", [Refuse, *sys.meta_path])


def test_a_run_ends_well_without_plots(tmp_path, capsys, caplog):
  experiment: Experiment = demo_pretrain.experiment()
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    writer.write({"step": 1, "kind": "train", "loss": 1.0})
  records = loop._report_end(experiment, str(tmp_path))
  assert [record["loss"] for record in records] == [1.0]
  assert experiment.name in capsys.readouterr().out
  assert f"plots cannot be drawn: {REASON}" in caplog.messages
  assert not (tmp_path / "plots").exists()


def test_tables_are_made_without_plots():
  choice = choose(fine_tuned_runs(), ())
  assert "Ranked by" in as_text(choice)
  with pytest.raises(UserError, match=f"plots cannot be drawn: {REASON}"):
    draw(choice)


def test_laws_are_fitted_without_plots():
  import train.scaling_law  # noqa: F401

  with pytest.raises(UserError, match=REASON), importing_matplotlib():
    # `from train.scaling import` would find the attribute that an earlier test has imported.
    importlib.import_module("train.scaling.analysis_plots")
